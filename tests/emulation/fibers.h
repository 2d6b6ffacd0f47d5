// Stacks of their own that one thread of the operating system switches between. AddressSanitizer and
// ThreadSanitizer are told of every switch.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

#if defined(HISTLOSS_TSAN)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

// Memory with a page below it that nothing may touch. Stacks that are let go serve again: making one costs
// more than a small CUDA thread runs for.
class Stack {
 public:
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;

  static constexpr std::size_t kBytes = std::size_t{128} << 10;
  void* bottom;
};

class Fiber {
 public:
  Fiber();                          // stands for the code that is running
  explicit Fiber(void (*start)());  // start is called at the first switch, and must never return
  ~Fiber();
  Fiber(const Fiber&) = delete;

  // Goes on in `to` until something switches back; not for the last time, unless `ending`.
  void switch_to(Fiber& to, bool ending = false);

  // The first thing that a fiber does, and what switch_to does when it returns.
  void arrived();

  // ThreadSanitizer: from here on, whatever the stack, the code counts as this fiber's.
  void impersonate() const;
  // And what any of the fibers did until now happens before what any of them does next.
  static void order(Fiber* const* fibers, std::size_t count);
  // What the running code has done until now happens before what others do after they acquire.
  static void release(void* object);
  static void acquire(void* object);

 private:
  std::unique_ptr<Stack> stack_;  // none: the code that was running
#if defined(__x86_64__)
  void* top_ = nullptr;
#else
  ucontext_t context_;
#endif
  [[maybe_unused]] void* fake_stack_ = nullptr;
  [[maybe_unused]] const void* stack_bottom_ = nullptr;
  [[maybe_unused]] std::size_t stack_bytes_ = 0;
  [[maybe_unused]] void* tsan_ = nullptr;
};

}  // namespace emulation
