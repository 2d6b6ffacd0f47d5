#include "fibers.h"

#include <sys/mman.h>

#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(HISTLOSS_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace emulation {
namespace {

constexpr std::size_t kGuard = 4096;

std::vector<void*>& idle_stacks() {
  static std::vector<void*> stacks;
  return stacks;
}

}  // namespace

Stack::Stack() {
  if (!idle_stacks().empty()) {
    bottom = idle_stacks().back();
    idle_stacks().pop_back();
    return;
  }
  void* pages = mmap(nullptr, kGuard + kBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED || mprotect(pages, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
  bottom = static_cast<char*>(pages) + kGuard;
}

Stack::~Stack() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom, kBytes);  // left behind by frames that never returned
#endif
  idle_stacks().push_back(bottom);
}

#if defined(__x86_64__)

// Pushes what a function must preserve, leaves the stack pointer in *from and takes the stack `to`.
extern "C" void histloss_switch_stack(void** from, void* to);
asm(R"(
.text
.type histloss_switch_stack, @function
histloss_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size histloss_switch_stack, .-histloss_switch_stack
)");

#endif

Fiber::Fiber() {
#if defined(HISTLOSS_TSAN)
  tsan_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*start)()) : stack_(std::make_unique<Stack>()) {
  stack_bottom_ = stack_->bottom;
  stack_bytes_ = Stack::kBytes;
#if defined(__x86_64__)
  // What histloss_switch_stack pops: six registers and the address to go to; above it a return address.
  constexpr int kRegisters = 6;
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack_->bottom) + Stack::kBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(start);
  for (int i = 0; i < kRegisters; ++i) *--top = nullptr;
  top_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_->bottom;
  context_.uc_stack.ss_size = Stack::kBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, start, 0);
#endif
#if defined(HISTLOSS_TSAN)
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(HISTLOSS_TSAN)
  if (stack_ != nullptr) __tsan_destroy_fiber(tsan_);
#endif
}

namespace {

Fiber* left;  // by the switch that is under way

}  // namespace

void Fiber::switch_to(Fiber& to, [[maybe_unused]] bool ending) {
  left = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ending ? nullptr : &fake_stack_, to.stack_bottom_, to.stack_bytes_);
#endif
#if defined(__x86_64__)
  histloss_switch_stack(&top_, to.top_);
#else
  swapcontext(&context_, &to.context_);
#endif
  arrived();
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &left->stack_bottom_, &left->stack_bytes_);
#endif
}

void Fiber::impersonate() const {
#if defined(HISTLOSS_TSAN)
  __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
}

void Fiber::order([[maybe_unused]] Fiber* const* fibers, [[maybe_unused]] std::size_t count) {
#if defined(HISTLOSS_TSAN)
  // The object is new every time, or what came before on it would be ordered too.
  const auto object = std::make_unique<char>();
  void* const running = __tsan_get_current_fiber();
  for (std::size_t i = 0; i < count; ++i) {
    fibers[i]->impersonate();
    __tsan_release(object.get());
  }
  for (std::size_t i = 0; i < count; ++i) {
    fibers[i]->impersonate();
    __tsan_acquire(object.get());
  }
  __tsan_switch_to_fiber(running, __tsan_switch_to_fiber_no_sync);
#endif
}

void Fiber::release([[maybe_unused]] void* object) {
#if defined(HISTLOSS_TSAN)
  __tsan_release(object);
#endif
}

void Fiber::acquire([[maybe_unused]] void* object) {
#if defined(HISTLOSS_TSAN)
  __tsan_acquire(object);
#endif
}

}  // namespace emulation
