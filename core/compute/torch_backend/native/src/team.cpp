#include "team.h"

#include <atomic>
#include <ctime>
#include <pthread.h>

namespace {

constexpr int MOST = 256;
constexpr int64_t AWAKE_NANOSECONDS = 200000;

// Tasks up to `end` that nobody has claimed. Whoever claims one may read the region: it cannot end before that task is done.
struct alignas(64) Portion {
    std::atomic<int64_t> left{0};
    int64_t end = 0;
};

struct alignas(64) {
    Portion portions[MOST];
    alignas(64) std::atomic<int64_t> pending{0};  // tasks that are not done
    alignas(64) std::atomic<uint64_t> number{0};  // of regions begun: another one is something to look at
    void (*body)(void *, int64_t) = nullptr;
    void *context = nullptr;
} region;

std::atomic<int> sleepers{0};
std::atomic<int> members{1};
int started = 1;
pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER;  // one region at a time
pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;  // of those asleep
pthread_cond_t bell = PTHREAD_COND_INITIALIZER;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int64_t now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

void work_through(Portion &portion) {
    int64_t left = portion.left.load(std::memory_order_acquire);
    while (left > 0) {
        if (!portion.left.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
        region.body(region.context, portion.end - left);
        region.pending.fetch_sub(1, std::memory_order_release);
        left = portion.left.load(std::memory_order_acquire);
    }
}

// Its own portion first, then those after it.
void work(int self) {
    int size = members.load(std::memory_order_relaxed);
    for (int other = 0; other < size; ++other) work_through(region.portions[(self + other) % size]);
}

void *member(void *argument) {
    int self = int(reinterpret_cast<intptr_t>(argument));
    uint64_t seen = 0;
    int64_t since = now();
    for (;;) {
        uint64_t number = region.number.load(std::memory_order_seq_cst);
        if (number != seen) {
            seen = number;
            work(self);
            since = now();
            continue;
        }
        for (int turn = 0; turn < 64 && region.number.load(std::memory_order_relaxed) == seen; ++turn) relax();
        if (region.number.load(std::memory_order_seq_cst) != seen || now() - since < AWAKE_NANOSECONDS) continue;
        pthread_mutex_lock(&door);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        while (region.number.load(std::memory_order_seq_cst) == seen) pthread_cond_wait(&bell, &door);
        sleepers.fetch_sub(1, std::memory_order_seq_cst);
        pthread_mutex_unlock(&door);
    }
    return nullptr;
}

// A forked child has none of the threads; it works alone until it starts a team of its own.
void forked() {
    members.store(1);
    started = 1;
    sleepers.store(0);
    for (Portion &portion : region.portions) portion.left.store(0);
    region.pending.store(0);
    busy = PTHREAD_MUTEX_INITIALIZER;
    door = PTHREAD_MUTEX_INITIALIZER;
    bell = PTHREAD_COND_INITIALIZER;
}

} // namespace

namespace team {

int size() { return members.load(std::memory_order_relaxed); }

void run(int64_t tasks, bool portions, void (*body)(void *, int64_t), void *context) {
    // Whoever finds another's region under way works alone.
    if (tasks < 2 || size() < 2 || pthread_mutex_trylock(&busy) != 0) {
        for (int64_t task = 0; task < tasks; ++task) body(context, task);
        return;
    }
    region.body = body;
    region.context = context;
    region.pending.store(tasks, std::memory_order_relaxed);
    int used = portions ? size() : 1;
    for (int portion = 0; portion < used; ++portion) {
        int64_t first = tasks * portion / used, end = tasks * (portion + 1) / used;
        region.portions[portion].end = end;
        region.portions[portion].left.store(end - first, std::memory_order_seq_cst);
    }
    region.number.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) > 0) {
        pthread_mutex_lock(&door);
        pthread_cond_broadcast(&bell);
        pthread_mutex_unlock(&door);
    }
    work(0);
    while (region.pending.load(std::memory_order_acquire) > 0) relax();
    pthread_mutex_unlock(&busy);
}

} // namespace team

// Threads once started stay; a smaller team than before leaves none of them out, a larger one adds some.
EXPORT void team_start(int64_t threads) {
    static bool watched = false;
    pthread_mutex_lock(&busy);
    if (!watched) {
        pthread_atfork(nullptr, nullptr, forked);
        watched = true;
    }
    if (threads > MOST) threads = MOST;
    for (; started < threads; ++started) {
        pthread_t thread;
        if (pthread_create(&thread, nullptr, member, reinterpret_cast<void *>(intptr_t(started))) != 0) break;
        pthread_detach(thread);
    }
    members.store(threads > 1 ? started : 1);
    pthread_mutex_unlock(&busy);
}

EXPORT int64_t team_size() { return team::size(); }

EXPORT const char *instructions() {
#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
    return "avx512 bf16 vnni";
#elif defined(__AVX512F__) && defined(__AVX512VNNI__)
    return "avx512 vnni";
#elif defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "portable";
#endif
}
