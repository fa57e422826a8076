/* Timeouts of the C++ library, reckoned by its steady clock, which never jumps. */
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <future>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <vector>

extern "C" {
#include "guest.h"
}

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto wait_time = 150ms;
constexpr auto jump = 60s;

std::atomic<bool> stop{false};
std::timed_mutex held;
std::shared_timed_mutex held_shared;
std::promise<void> never;

void by_condition()
{
    std::mutex mutex;
    std::condition_variable condition;
    std::unique_lock<std::mutex> lock(mutex);
    CHECK(!condition.wait_for(lock, wait_time, [] { return false; }));
}

void by_mutex() { CHECK(!held.try_lock_for(wait_time)); }

void by_shared() { CHECK(!held_shared.try_lock_shared_for(wait_time)); }

void by_future()
{
    static std::shared_future<void> future = never.get_future().share();
    CHECK(future.wait_until(Clock::now() + wait_time) == std::future_status::timeout);
}

void by_sleep() { std::this_thread::sleep_until(Clock::now() + wait_time); }

void again_and_again(void (*way)(), std::atomic<long> *count)
{
    while (!stop) {
        auto begin = Clock::now();
        way();
        auto took = Clock::now() - begin;
        CHECK(took >= wait_time);
        CHECK(took < jump);
        ++*count;
    }
}

} // namespace

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    void (*const ways[])() = {by_condition, by_mutex, by_shared, by_future, by_sleep};
    std::atomic<long> counts[std::size(ways)] = {};
    std::vector<std::thread> threads;
    held.lock();
    held_shared.lock();
    for (size_t i = 0; i < std::size(ways); i++)
        threads.emplace_back(again_and_again, ways[i], &counts[i]);
    auto last = Clock::now();
    for (long i = 1; i <= steps; i++) {
        auto now = Clock::now();
        CHECK(now >= last);
        CHECK(now - last < jump);
        last = now;
        guest_step(i);
    }
    stop = true;
    for (auto &thread : threads)
        thread.join();
    for (auto &count : counts)
        CHECK(count > 0);
    guest_line("ok steady");
    return 0;
}
