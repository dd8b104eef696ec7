// What the compiler puts into a kernel: a call before each load and store (-fsanitize=thread), calls where
// an index, an address or an operation is found wrong (-fsanitize=bounds-strict, alignment, ...), and calls of
// the C library that are redirected here (the linker's --wrap).  The names and arguments are GCC's.
//
// Compiled without instrumentation.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "state.h"

using namespace rawgrad_emulator;

#define CALLER __builtin_return_address(0)

void rawgrad_emulator::copy_bytes(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }

extern "C" {

// ---- loads and stores

#define HOOK(name, bytes, access) \
  void __tsan_##name(void* place) { access_memory(place, bytes, access, CALLER); }
#define HOOKS(bytes)                            \
  HOOK(read##bytes, bytes, READ)                \
  HOOK(write##bytes, bytes, WRITE)              \
  HOOK(unaligned_read##bytes, bytes, READ)      \
  HOOK(unaligned_write##bytes, bytes, WRITE)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* place, size_t bytes) { access_memory(place, bytes, READ, CALLER); }
void __tsan_write_range(void* place, size_t bytes) { access_memory(place, bytes, WRITE, CALLER); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

void* __wrap_memcpy(void* to, const void* from, size_t bytes) {
  access_memory(from, bytes, READ, CALLER);
  access_memory(to, bytes, WRITE, CALLER);
  return memcpy(to, from, bytes);
}
void* __wrap_memmove(void* to, const void* from, size_t bytes) {
  access_memory(from, bytes, READ, CALLER);
  access_memory(to, bytes, WRITE, CALLER);
  return memmove(to, from, bytes);
}
void* __wrap_memset(void* to, int value, size_t bytes) {
  access_memory(to, bytes, WRITE, CALLER);
  return memset(to, value, bytes);
}

// ---- assertions

[[noreturn]] void __wrap___assert_fail(const char* expression, const char* file, unsigned line, const char*) {
  Finding& finding = report(ASSERTION, CALLER);
  finding.first.file = file;
  finding.first.line = line;
  snprintf(finding.detail, sizeof finding.detail, "%s", expression);
  abandon();
}

// ---- indices, addresses and arithmetic

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;  // kind 0: an integer, whose info is 2 log2(bits), plus 1 if it is signed
  char name[1];         // quoted: 'float [16]'
};
struct BoundsData {
  SourceLocation at;
  const TypeDescriptor *array, *index;
};
struct AlignmentData {
  SourceLocation at;
  const TypeDescriptor* type;
  unsigned char log_alignment, operation;
};
struct OperationData {
  SourceLocation at;
  const TypeDescriptor *type, *other;
};

static long long integer(const TypeDescriptor* type, uintptr_t value) {
  const int bits = 1 << (type->info >> 1);
  if (type->kind != 0 || bits > 64) return 0;
  const int unused = 64 - bits;
  return type->info & 1 ? static_cast<int64_t>(value << unused) >> unused : static_cast<int64_t>(value << unused >> unused);
}

static Finding& report_at(FindingKind kind, const SourceLocation& at, const void* caller) {
  Finding& finding = report(kind, caller);
  finding.first.file = at.file;
  finding.first.line = at.line;
  return finding;
}

void __ubsan_handle_out_of_bounds(BoundsData* data, uintptr_t index) {
  if (current == nullptr) return;
  Finding& finding = report_at(BOUNDS, data->at, CALLER);
  snprintf(finding.detail, sizeof finding.detail, "index %lld of an array of type %s", integer(data->index, index),
           data->array->name);
  abandon();
}

void __ubsan_handle_type_mismatch_v1(AlignmentData* data, uintptr_t place) {
  // A null or wild pointer is found at the access, with more to say about it.
  const size_t alignment = size_t(1) << data->log_alignment;
  if (place % alignment == 0) return;
  misaligned(reinterpret_cast<void*>(place), alignment, alignment, data->operation == 1 ? WRITE : READ, CALLER);
}

void __ubsan_handle_divrem_overflow(OperationData* data, uintptr_t, uintptr_t divisor) {
  if (current == nullptr) return;
  Finding& finding = report_at(ARITHMETIC, data->at, CALLER);
  snprintf(finding.detail, sizeof finding.detail,
           integer(data->type, divisor) == 0 ? "division by zero" : "division of the smallest integer by -1");
  abandon();
}

void __ubsan_handle_shift_out_of_bounds(OperationData* data, uintptr_t, uintptr_t by) {
  if (current == nullptr) return;
  Finding& finding = report_at(ARITHMETIC, data->at, CALLER);
  snprintf(finding.detail, sizeof finding.detail, "shift of %s by %lld bits", data->type->name, integer(data->other, by));
  abandon();
}

// A GPU gives the nearest integer, or 0 for NaN; C++ promises nothing, and the CPU does something else.
void __ubsan_handle_float_cast_overflow(OperationData* data, uintptr_t bits) {
  if (current == nullptr) return;
  Finding& finding = report_at(ARITHMETIC, data->at, CALLER);
  double value;
  if (data->type->info == 32) {
    float single;
    memcpy(&single, &bits, sizeof single);
    value = single;
  } else {
    memcpy(&value, data->type->info == 64 ? &bits : reinterpret_cast<uintptr_t*>(bits), sizeof value);
  }
  snprintf(finding.detail, sizeof finding.detail, "conversion of %g to %s, which cannot hold it", value, data->other->name);
  abandon();
}

}  // extern "C"
