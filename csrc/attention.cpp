// Sizes that depend on no instruction set.
#include "kernels/attention_buffers.h"
#include "kernels/kv_layout.h"

namespace inferloom {

size_t kv_page_bytes(KvType type, int kv_heads, int head_dim) {
  return static_cast<size_t>(KvLayout{head_dim, type}.head_bytes()) * static_cast<size_t>(kv_heads);
}

size_t attention_scratch(const AttentionSpec& spec) {
  const int64_t queries = int64_t{kAttentionRows} * (spec.heads / spec.kv_heads);
  return static_cast<size_t>(AttentionBuffers::divide(nullptr, queries, spec.head_dim, nullptr));
}

}  // namespace inferloom
