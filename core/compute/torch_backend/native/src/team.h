// A team of threads for short parallel regions. Tasks are claimed one by one, so that a member which the system has taken
// off its core holds nobody up: the others do its share. Members spin for a moment after a region, then sleep.
#pragma once

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace team {

int size();

// Runs body(context, task) for every task of 0..tasks-1, and returns when all are done. The first tasks are begun first.
void run(int64_t tasks, void (*body)(void *context, int64_t task), void *context);

template <class Body> void each(int64_t tasks, Body &&body) {
    run(
        tasks, [](void *context, int64_t task) { (*static_cast<Body *>(context))(task); },
        const_cast<void *>(static_cast<const void *>(&body)));
}

// Rows 0..rows-1 in blocks: body(first, last).
template <class Body> void blocks(int64_t rows, int64_t block, Body &&body) {
    each((rows + block - 1) / block, [&](int64_t task) {
        int64_t first = task * block;
        body(first, first + block < rows ? first + block : rows);
    });
}

} // namespace team
