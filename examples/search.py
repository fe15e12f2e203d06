"""Find the sentence nearest in meaning, with the embeddings of `minilm` (they come normalised)."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("INFERLOOM_URL", "http://127.0.0.1:8080") + "/v1", api_key="none")

sentences = ["The cat sleeps on the sofa.", "Interest rates rose again.", "The train to Rome leaves at noon."]
query = "When does the railway go to Italy?"
vectors = [
    item.embedding for item in client.embeddings.create(model="minilm", input=[*sentences, query]).data
]
*known, asked = vectors
scores = [sum(a * b for a, b in zip(vector, asked, strict=True)) for vector in known]
for score, sentence in sorted(zip(scores, sentences, strict=True), reverse=True):
    print(f"{score:.2f}  {sentence}")
