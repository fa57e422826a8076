/* Threads that throw C++ exceptions through many frames, rethrow them, and hand them to other threads. */
#include <atomic>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

extern "C" {
#include "guest.h"
}

namespace {

std::atomic<bool> stop{false};
std::atomic<long> caught{0};

struct Numbered : std::runtime_error {
    long number;
    explicit Numbered(long n) : std::runtime_error("number " + std::to_string(n)), number(n) {}
};

/* Counts how many are alive: unwinding must destroy each. */
struct Witness {
    long *count;
    explicit Witness(long *c) : count(c) { ++*count; }
    ~Witness() { --*count; }
    Witness(const Witness &) = delete;
    Witness &operator=(const Witness &) = delete;
};

long descend(long depth, long number, long *alive)
{
    Witness witness(alive);
    if (depth == 0) {
        /* Some are thrown after a pause: the frames below stand across a checkpoint. */
        if (number % 16 == 0)
            guest_nap_us(3000);
        throw Numbered(number);
    }
    try {
        return descend(depth - 1, number, alive) + 1;
    } catch (const std::logic_error &) {
        CHECK(!"caught as something else");
    } catch (const Numbered &error) {
        if (depth % 8 == 0)
            throw;
        if (depth % 8 == 4)
            std::throw_with_nested(Numbered(error.number));
        throw;
    }
    return 0;
}

void storm(long me)
{
    for (long i = 1; !stop; i++) {
        long alive = 0;
        std::exception_ptr kept;
        try {
            descend(30, me * 1000000 + i, &alive);
            CHECK(!"no exception");
        } catch (const Numbered &error) {
            CHECK_EQ(alive, 0);
            CHECK_EQ(error.number, me * 1000000 + i);
            CHECK(error.what() == "number " + std::to_string(error.number));
            kept = std::current_exception();
        }
        try {
            std::rethrow_exception(kept);
        } catch (const std::exception &error) {
            CHECK(dynamic_cast<const Numbered *>(&error) != nullptr);
        }
        caught++;
        if (i % 64 == 0)
            guest_nap_us(500);
    }
}

} // namespace

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    std::vector<std::thread> threads;
    for (long i = 0; i < 4; i++)
        threads.emplace_back(storm, i);
    std::string text;
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        text += std::to_string(i);
        try {
            (void)text.at(text.size() + static_cast<size_t>(i));
            CHECK(!"no exception");
        } catch (const std::out_of_range &) {
        }
    }
    stop = true;
    for (auto &thread : threads)
        thread.join();
    CHECK(caught > 0);
    guest_line("ok exceptions %016lx", static_cast<unsigned long>(guest_sum(text.data(), text.size())));
    return 0;
}
