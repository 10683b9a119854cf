// A team of threads for short parallel regions. Tasks are claimed one by one, so that a member which the system has taken
// off its core holds nobody up: the others do its share. Members stay awake for a moment after a region, then sleep.
#pragma once

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace team {

int size();

// Runs body(context, task) for every task of 0..tasks-1, and returns when all are done. Either all members claim the first
// task that is left, or each has a portion of neighbouring tasks that it goes through first (`portions`): tasks that
// follow each other in memory are then followed by one member, and the others help whoever is behind.
void run(int64_t tasks, bool portions, void (*body)(void *context, int64_t task), void *context);

template <class Body> void each(int64_t tasks, Body &&body, bool portions = false) {
    run(
        tasks, portions, [](void *context, int64_t task) { (*static_cast<Body *>(context))(task); },
        const_cast<void *>(static_cast<const void *>(&body)));
}

// Rows 0..rows-1 in blocks: body(first, last).
template <class Body> void blocks(int64_t rows, int64_t block, Body &&body, bool portions = false) {
    each(
        (rows + block - 1) / block,
        [&](int64_t task) {
            int64_t first = task * block;
            body(first, first + block < rows ? first + block : rows);
        },
        portions);
}

} // namespace team
