// Memory that a call needs while it lasts. It is kept for the next call of the same thread.
#pragma once

#include <cstdint>
#include <cstdlib>

struct Scratch {
    char *memory = nullptr;
    int64_t bytes = 0;

    ~Scratch() { free(memory); }

    char *take(int64_t wanted) { // one piece at a time: the next call may move it
        if (wanted > bytes) {
            free(memory);
            bytes = (wanted + (1 << 16)) / 4096 * 4096;
            memory = static_cast<char *>(aligned_alloc(4096, bytes));
            if (!memory) abort();
        }
        return memory;
    }
};
