// The scheduler. Blocks run one after another, each thread of one on a fiber of its own until it must wait
// for others. To ThreadSanitizer all that is done here is the scheduler's, on whatever stack: see Scheduling.
#include "emulator.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fibers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

constexpr unsigned char kGarbage = 0xff;  // NaN, or -1
constexpr std::size_t kSharedBytesUnasked = std::size_t{48} << 10;
constexpr std::size_t kMostThreadsOfTsan = 8000;  // its fibers are threads to it, of which it follows 8,128
constexpr unsigned kInterruptedOf = 16;           // one atomic operation in as many

enum class State { ready, at_barrier, meeting, exited };

// Of some lanes of a warp, at a primitive. It lives until the last of them is at its next.
struct Meeting {
  const char* primitive;
  Memory memory;
  unsigned mask, arrived, held;
  std::uint64_t values[32];
};

struct Thread {
  Thread(int number, uint3 index, void (*start)()) : number(number), index(index), fiber(start) {}

  int lane() const { return number % warpSize; }

  int number;  // in the block
  uint3 index;
  State state = State::ready;
  Where where;
  Meeting* meeting = nullptr;
  Fiber fiber;
};

struct Block {
  const std::function<void()>& body;
  std::unique_ptr<unsigned char[]> shared;
  std::deque<Thread> threads;
  std::vector<Thread*> ready;
  std::deque<Meeting> meetings;
  std::vector<Meeting*> idle_meetings;
  int waiting = 0, exited = 0;

  explicit Block(const std::function<void()>& body) : body(body) {}

  int size() const { return static_cast<int>(threads.size()); }
};

std::mt19937 random_numbers;
Block* block;     // that runs
Thread* running;  // null: the scheduler, below
Fiber* scheduler;
std::map<const void*, std::size_t> allowed_shared_bytes;  // of kernels

std::string text(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) +
         ")";
}

std::string text(Where where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line()) + " in " + where.function_name();
}

bool same_place(Where a, Where b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// ---- switching ------------------------------------------------------------------------------------

Thread* take_ready() {
  std::vector<Thread*>& ready = block->ready;
  if (ready.empty()) return nullptr;
  const auto earlier = [](const Thread* a, const Thread* b) { return a->number < b->number; };
  auto chosen = ready.begin();
  switch (options().order) {
    case Order::random: chosen += random_numbers() % ready.size(); break;
    case Order::forward: chosen = std::min_element(ready.begin(), ready.end(), earlier); break;
    case Order::backward: chosen = std::max_element(ready.begin(), ready.end(), earlier); break;
  }
  Thread* thread = *chosen;
  *chosen = ready.back();
  ready.pop_back();
  return thread;
}

void make_ready(Thread& thread) {
  thread.state = State::ready;
  block->ready.push_back(&thread);
}

// From the fiber of `from`, or from the scheduler, to that of `to`, or to the scheduler.
void switch_threads(Thread* from, Thread* to) {
  if (from == to) return;
  running = to;
  if (to != nullptr) threadIdx = to->index;
  Fiber& left = from != nullptr ? from->fiber : *scheduler;
  left.switch_to(to != nullptr ? to->fiber : *scheduler, from != nullptr && from->state == State::exited);
}

// Runs others until this thread is ready and its turn comes.
void wait() { switch_threads(running, take_ready()); }

// The scope of a function that a kernel calls.
struct Scheduling {
  Scheduling() { scheduler->impersonate(); }
  ~Scheduling() { running->fiber.impersonate(); }
};

[[noreturn]] void abandon(const std::string& message) {
  error() = message;
  running->state = State::exited;
  switch_threads(running, nullptr);
  __builtin_unreachable();  // the scheduler gives the block up, the frames of its threads with it
}

[[noreturn]] void fail_at(Where where, const std::string& message) {
  abandon(message + ": thread " + text(threadIdx) + " of block " + text(blockIdx) + ", " + text(where));
}

void order_threads(const std::vector<Fiber*>& fibers) {
  if constexpr (kThreadSanitizer) Fiber::order(fibers.data(), fibers.size());
}

void run_thread() {
  running->fiber.arrived();
  running->fiber.impersonate();
  block->body();
  scheduler->impersonate();
  ++block->exited;
  if (block->waiting > 0) {
    for (const Thread& other : block->threads)
      if (other.state == State::at_barrier)
        fail_at(other.where, "a thread has left the kernel while thread " + text(other.index) +
                                 " waits at a barrier that it did not reach");
  }
  running->state = State::exited;
  wait();
}

// ---- blocks ---------------------------------------------------------------------------------------

std::string describe_deadlock() {
  std::string message = "deadlock in block " + text(blockIdx);
  std::vector<const Thread*> told;
  for (const Thread& thread : block->threads) {
    const auto same = [&](const Thread* other) { return same_place(thread.where, other->where); };
    if (thread.state == State::exited || std::any_of(told.begin(), told.end(), same)) continue;
    told.push_back(&thread);
    const char* primitive = thread.state == State::meeting ? thread.meeting->primitive : "__syncthreads";
    message += "; thread " + text(thread.index) + " waits in " + primitive + " at " + text(thread.where);
  }
  return message;
}

// False: a kernel's error.
bool run(Block& current, const cudaLaunchConfig_t& config) {
  const auto [width, height, depth] = config.blockDim;
  const unsigned count = width * height * depth;
  for (unsigned i = 0; i < count; ++i)
    current.threads.emplace_back(static_cast<int>(i),
                                 uint3{i % width, i / width % height, i / (width * height)}, run_thread);
  current.ready.reserve(count);
  for (Thread& thread : current.threads) current.ready.push_back(&thread);
  block = &current;
  switch_threads(nullptr, take_ready());
  if (!error().empty()) return false;
  if (current.exited == current.size()) return true;
  error() = describe_deadlock();
  return false;
}

std::vector<std::uint64_t> block_order(std::uint64_t count) {
  std::vector<std::uint64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (options().order == Order::backward) std::reverse(order.begin(), order.end());
  if (options().order == Order::random) std::shuffle(order.begin(), order.end(), random_numbers);
  return order;
}

bool run_blocks(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  const auto [width, height, depth] = config.gridDim;
  std::deque<Block> blocks;  // ThreadSanitizer: all, or a block would seem to race with one before it
  Fiber here;
  scheduler = &here;
  running = nullptr;
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  for (const std::uint64_t i : block_order(std::uint64_t{width} * height * depth)) {
    if (!kThreadSanitizer) blocks.clear();
    blocks.emplace_back(body);
    blocks.back().shared = std::make_unique<unsigned char[]>(config.dynamicSmemBytes);
    std::memset(blocks.back().shared.get(), kGarbage, config.dynamicSmemBytes);
    blockIdx = {static_cast<unsigned>(i % width), static_cast<unsigned>(i / width % height),
                static_cast<unsigned>(i / width / height)};
    if (!run(blocks.back(), config)) return false;
  }
  std::vector<Fiber*> fibers{&here};  // the launch is over: before whatever the stream does next
  for (Block& one : blocks)
    for (Thread& thread : one.threads) fibers.push_back(&thread.fiber);
  order_threads(fibers);
  return true;
}

// Why a GPU would not launch this, or nothing.
std::string refusal(const cudaLaunchConfig_t& config, const void* kernel) {
  const auto [gx, gy, gz] = config.gridDim;
  const auto [bx, by, bz] = config.blockDim;
  const std::uint64_t threads = std::uint64_t{bx} * by * bz;
  if (gx < 1 || gx > 0x7fffffff || gy < 1 || gy > 65535 || gz < 1 || gz > 65535)
    return "a grid of " + text(uint3{gx, gy, gz}) + " blocks";
  if (threads < 1 || threads > 1024 || bz > 64) return "a block of " + text(uint3{bx, by, bz}) + " threads";
  const auto allowed = allowed_shared_bytes.find(kernel);
  const std::size_t most = std::min(
      options().shared_bytes, allowed == allowed_shared_bytes.end() ? kSharedBytesUnasked : allowed->second);
  if (config.dynamicSmemBytes > most)
    return std::to_string(config.dynamicSmemBytes) + " bytes of shared memory, where " +
           std::to_string(most) + " are allowed";
  return "";
}

}  // namespace

Options& options() {
  static Options instance;
  return instance;
}

std::string& error() {
  static std::string instance;
  return instance;
}

cudaError_t allow_shared_bytes(const void* kernel, cudaFuncAttribute attribute, int bytes) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || bytes < 0 ||
      static_cast<std::size_t>(bytes) > options().shared_bytes) {
    error() = "cudaFuncSetAttribute asks for " + std::to_string(bytes) + " bytes of shared memory";
    return cudaErrorInvalidValue;
  }
  allowed_shared_bytes[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body) {
  const std::string refused = refusal(config, kernel);
  if (!refused.empty()) {
    error() = "the launch is refused: " + refused;
    return cudaErrorInvalidConfiguration;
  }
  const auto [gx, gy, gz] = config.gridDim;
  const auto [bx, by, bz] = config.blockDim;
  if (kThreadSanitizer && std::uint64_t{gx} * gy * gz * bx * by * bz > kMostThreadsOfTsan) {
    error() = "ThreadSanitizer does not follow so many threads: use a smaller image";
    return cudaErrorLaunchFailure;
  }
  error().clear();
  random_numbers.seed(options().seed);
  return run_blocks(config, body) ? cudaSuccess : cudaErrorLaunchFailure;
}

// ---- what kernels call ----------------------------------------------------------------------------

unsigned char* shared_memory() { return block->shared.get(); }

int lane() { return running->lane(); }

void fail(Where where, const char* message) {
  const Scheduling scope;
  fail_at(where, message);
}

void synchronise_block(Where where) {
  const Scheduling scope;
  running->where = where;
  if (block->exited > 0) fail_at(where, "some threads have left the kernel, others are at a barrier");
  for (const Thread& other : block->threads) {
    if (other.state != State::at_barrier) continue;
    if (!same_place(where, other.where))
      fail_at(where, "a divergent barrier: thread " + text(other.index) + " waits at " + text(other.where));
    break;
  }
  running->state = State::at_barrier;
  if (++block->waiting == block->size()) {
    std::vector<Fiber*> fibers;
    for (Thread& thread : block->threads) {
      if constexpr (kThreadSanitizer) fibers.push_back(&thread.fiber);
      make_ready(thread);
    }
    order_threads(fibers);
    block->waiting = 0;
  }
  wait();
}

namespace {

Meeting* new_meeting(const char* primitive, Memory memory, unsigned mask) {
  if (block->idle_meetings.empty()) block->idle_meetings.push_back(&block->meetings.emplace_back());
  Meeting* meeting = block->idle_meetings.back();
  block->idle_meetings.pop_back();
  meeting->primitive = primitive;
  meeting->memory = memory;
  meeting->mask = mask;
  meeting->arrived = meeting->held = 0;
  return meeting;
}

void leave_meeting(Thread& thread) {
  if (thread.meeting == nullptr) return;
  thread.meeting->held &= ~(1u << thread.lane());
  if (thread.meeting->held == 0) block->idle_meetings.push_back(thread.meeting);
  thread.meeting = nullptr;
}

// visit(thread) for every lane of the mask in the running thread's warp.
template <class Visit>
void each_lane(unsigned mask, const Visit& visit) {
  const int first = running->number - running->lane();
  for (int i = 0; i < warpSize; ++i)
    if (mask >> i & 1) visit(first + i < block->size() ? &block->threads[first + i] : nullptr);
}

}  // namespace

void meet(const char* primitive, Memory memory, unsigned mask, std::uint64_t value, Where where) {
  const Scheduling scope;
  const auto name = [&] { return std::string(primitive); };
  running->where = where;
  leave_meeting(*running);
  const unsigned bit = 1u << running->lane();
  if ((mask & bit) == 0) fail_at(where, name() + " by a lane that is not in its mask");
  Meeting* meeting = nullptr;
  each_lane(mask, [&](const Thread* other) {
    if (other == nullptr) fail_at(where, name() + " with a lane in its mask that the block does not have");
    if (other->state == State::exited) fail_at(where, name() + " with a lane in its mask that has exited");
    if (other->state != State::meeting) return;
    if (other->meeting->mask != mask || std::strcmp(other->meeting->primitive, primitive) != 0)
      fail_at(where, name() + " while thread " + text(other->index) + " of its mask waits in " +
                         other->meeting->primitive + ", or with another mask, at " + text(other->where));
    meeting = other->meeting;
  });
  if (meeting == nullptr) meeting = new_meeting(primitive, memory, mask);
  running->meeting = meeting;
  running->state = State::meeting;
  meeting->values[running->lane()] = value;
  meeting->arrived |= bit;
  meeting->held |= bit;
  if (meeting->arrived == mask) {
    std::vector<Fiber*> fibers;
    each_lane(mask, [&](Thread* thread) {
      if constexpr (kThreadSanitizer) fibers.push_back(&thread->fiber);
      make_ready(*thread);
    });
    if (memory == Memory::ordered) order_threads(fibers);
  }
  wait();
}

std::uint64_t value_of(int lane) { return running->meeting->values[lane]; }

// A write and a fence come before an atomic operation in one thread, an atomic operation and a fence before a
// read in another: so every fence is taken to come after those before it.
void fence() {
  static char object;
  Fiber::acquire(&object);
  Fiber::release(&object);
}

void interrupt() {
  if (options().order != Order::random || random_numbers() % kInterruptedOf != 0) return;
  const Scheduling scope;
  block->ready.push_back(running);
  wait();
}

}  // namespace emulation

// ---- the runtime ----------------------------------------------------------------------------------

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: break;
  }
  return "unspecified launch failure";
}

// An error is returned by the call that made it, and none is left behind.
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
