"""The table: every flag and variable of FastDeploy's server that no plugin of its own answers to.

Whoever builds one of them gives it an alias in the new plugin and deletes its line here. Those that have a meaning already
stand with the setting or the feature they are about.
"""

from __future__ import annotations

from core.offers import Alias, ForeignWord

ALIASES: tuple[Alias, ...] = (
    Alias(
        "seconds running requests may take to finish after SIGTERM; 0 waits for ever (FastDeploy)",
        flag="--timeout-graceful-shutdown",
        sets="drain_timeout",
        translates=(("0", "inf"),),
    ),
    Alias(
        "requests that may wait; -1 for any number (FastDeploy)",
        flag="--scheduler-max-size",
        sets="max_waiting",
        translates=(("-1", str(2**31 - 1)),),
    ),
    Alias("level of the log (FastDeploy)", env="FD_LOG_LEVEL", sets="log_level"),
    Alias("1 logs more (FastDeploy)", env="FD_DEBUG", sets="log_level", translates=(("1", "debug"), ("0", None))),
)

NO_EXPERTS = "the model has no experts"
TEXT_ONLY = "the model takes text and gives text"
ONE_ROLE = "a server here does prefill and decode both, so nothing is handed to another one"
PREFILL_APART = "prefill and decode on servers of their own"
OTHER_SERVERS = "requests spread over several servers"
NO_REDIS = "waiting requests lie in the engine, not in a Redis"
NO_PORTS = "the processes of one server talk over sockets that they pick themselves"
NEW_WEIGHTS = "new weights in a running server"
OUR_KERNELS = "the kernels are chosen by device and number format; --explain shows the compute backend"
ENGINE_QUEUE = "the processes talk over ZeroMQ, in a way of their own"
NO_TELEMETRY = "nothing about this server is ever sent anywhere"
OUR_LOG = "the log goes to standard error, --log-level says how much"
TRACES = "traces are asked for by where they are sent: --otlp-traces-endpoint"
LOADING = "weights are always streamed in, one at a time, whatever their format"
EMBEDS_TOO = "one server generates and embeds (/v1/embeddings), and does not rank"
OTHER_HARDWARE = "it is about hardware that is not run on here"
OTHER_FORMAT = "this packed format is not offered: --list-plugins shows which are"


def _flags(
    effect: str, reason: str, *names: str, switch: bool = False, fine: tuple[str, ...] = (), remedy: str = ""
) -> list[ForeignWord]:
    return [ForeignWord(reason, effect, flag=name, switch=switch, fine=fine, remedy=remedy) for name in names]  # type: ignore[arg-type]


def _variables(effect: str, reason: str, *names: str, fine: tuple[str, ...] = ("0",), remedy: str = "") -> list[ForeignWord]:
    return [ForeignWord(reason, effect, env=name, fine=fine, remedy=remedy) for name in names]  # type: ignore[arg-type]


FLAGS: tuple[ForeignWord, ...] = (
    # the server
    *_flags("warns", "the process that answers requests is never left silent by the engine", "--timeout", fine=("0",)),
    *_flags("later", "a port from which the server is controlled", "--controller-port", fine=("-1",)),
    # the model
    *_flags("refuses", "the model's config is read from config.json", "--model-config-name", fine=("config.json",)),
    *_flags("refuses", "text is tokenized in the server's own process", "--tokenizer-base-url"),
    *_flags("refuses", EMBEDS_TOO, "--task", fine=("generate", "embed", "auto")),
    *_flags("refuses", EMBEDS_TOO, "--runner", fine=("generate", "pooling", "auto")),
    *_flags("refuses", EMBEDS_TOO, "--convert", fine=("none", "embed", "auto")),
    *_flags("refuses", "a request to /v1/embeddings says its pooling: last or mean", "--override-pooler-config"),
    *_flags(
        "warns",
        "no step is run before the first request; kernels are tried out while the model loads",
        "--use-warmup",
        fine=("0",),
    ),
    *_flags("warns", "one implementation runs all models", "--model-impl", fine=("auto", "fastdeploy")),
    ForeignWord(
        "weights drawn at random are a model of their own",
        "refuses",
        flag="--load-choices",
        values=("dummy",),
        remedy="--model random:ernie-4.5-0.3b instead of --load-choices dummy",
    ),
    *_flags("none", LOADING, "--load-choices"),
    *_flags("warns", LOADING, "--model-loader-extra-config"),
    *_flags("later", NEW_WEIGHTS, "--dynamic-load-weight", switch=True),
    *_flags("later", NEW_WEIGHTS, "--load-strategy", fine=("normal",)),
    *_flags("later", NEW_WEIGHTS, "--rsync-config"),
    ForeignWord(
        OTHER_FORMAT,
        "refuses",
        flag="--quantization",
        values=("w4a8", "w4afp8", "w8a8", "wfp8afp8", "tensor_wise_fp8", "wint2", "modelopt_fp4", "mxfp4", "kvcache"),
        remedy="--quantization wint8, or wint4",
    ),
    ForeignWord(
        "a format for each kind of layer is for models with experts; --quantization wint4 is four bits for every layer here",
        "refuses",
        flag="--quantization",
        values=("mix_quant", "{*"),
        remedy="--quantization wint4, or wint8 for what FastDeploy's wint4 is on this model",
    ),
    # pictures and sound
    *_flags("refuses", TEXT_ONLY, "--enable-mm-output", switch=True),
    *_flags("warns", TEXT_ONLY, "--enable-mm", "--disable-chunked-mm-input", switch=True),
    *_flags("warns", TEXT_ONLY, "--limit-mm-per-prompt", "--mm-processor-kwargs"),
    *_flags("warns", TEXT_ONLY, "--max-encoder-cache", "--max-processor-cache", fine=("-1", "0")),
    *_flags("warns", TEXT_ONLY, "--deploy-modality", fine=("text",)),
    # what is generated
    *_flags("none", "log-probabilities can always be asked for", "--enable-logprob", switch=True),
    *_flags("later", "log-probabilities of another stage", "--logprobs-mode", fine=("raw_logprobs",)),
    *_flags("later", "an end to answers that repeat themselves", "--enable-early-stop", switch=True),
    *_flags("later", "an end to answers that repeat themselves", "--early-stop-config"),
    *_flags("later", "logits processors of one's own", "--logits-processors"),
    *_flags("later", "the entropy of each token", "--enable-entropy", switch=True),
    *_flags(
        "refuses",
        "the head is computed in the number format of the model",
        "--lm_head-fp32",
        switch=True,
        remedy="--dtype float32 computes all of the model in it",
    ),
    # several devices
    *_flags("later", OTHER_SERVERS, "--data-parallel-size", fine=("1",)),
    *_flags("later", OTHER_SERVERS, "--local-data-parallel-id", fine=("0",)),
    *_flags("later", "one model over several hosts", "--ips", fine=("0.0.0.0", "127.0.0.1", "localhost")),
    *_flags("refuses", NO_EXPERTS, "--enable-expert-parallel", "--enable-eplb", switch=True),
    *_flags("refuses", NO_EXPERTS, "--eplb-config", "--routing-replay-config"),
    *_flags("warns", NO_EXPERTS, "--enable-chunked-moe", "--disable-sequence-parallel-moe", "--moe-gate-fp32", switch=True),
    *_flags("warns", NO_EXPERTS, "--use-internode-ll-two-stage", "--ep-prefill-use-worst-num-tokens", switch=True),
    *_flags("warns", NO_EXPERTS, "--chunked-moe-size"),
    *_flags("warns", "sums over ranks are the framework's own", "--disable-custom-all-reduce", switch=True),
    *_flags("warns", "sums over ranks are the framework's own", "--enable-custom-all-reduce", switch=True),
    *_flags("warns", "ranks stay together for as long as the server runs", "--shutdown-comm-group-if-worker-idle", switch=True),
    *_flags("warns", NO_PORTS, "--engine-worker-queue-port", "--cache-queue-port"),
    *_flags("warns", "steps are scheduled one after the other", "--enable-overlap-schedule", switch=True),
    # memory
    *_flags("warns", "pages are given one at a time, as they fill", "--prealloc-dec-block-slot-num-threshold"),
    *_flags("later", "KV pages in a store that servers share", "--kvcache-storage-backend"),
    *_flags("warns", "there is no store of KV pages that servers share", "--write-policy", fine=("write_through",)),
    *_flags("later", "attention that leaves blocks out", "--plas-attention-config"),
    # several servers
    *_flags("later", PREFILL_APART, "--splitwise-role", fine=("mixed",)),
    *_flags("warns", ONE_ROLE, "--innode-prefill-ports", "--cache-transfer-protocol", "--pd-comm-port", "--rdma-comm-ports"),
    *_flags("later", OTHER_SERVERS, "--router"),
    *_flags("later", OTHER_SERVERS, "--scheduler-name", fine=("local",)),
    *_flags("warns", "a request waits until it is answered or its client leaves", "--scheduler-ttl"),
    *_flags("warns", NO_REDIS, "--scheduler-host", "--scheduler-port", "--scheduler-db", "--scheduler-password"),
    *_flags("warns", NO_REDIS, "--scheduler-topic", "--scheduler-min-load-score", "--scheduler-load-shards-num"),
    *_flags("warns", NO_REDIS, "--scheduler-sync-period", "--scheduler-expire-period"),
    *_flags("warns", NO_REDIS, "--scheduler-release-load-expire-period"),
    *_flags("warns", NO_REDIS, "--scheduler-reader-parallel", "--scheduler-writer-parallel"),
    *_flags("warns", NO_REDIS, "--scheduler-reader-batch-size", "--scheduler-writer-batch-size"),
)

VARIABLES: tuple[ForeignWord, ...] = (
    # attention, sampling, scheduling
    *_variables("warns", OUR_KERNELS, "FD_ATTENTION_BACKEND", "FLAGS_max_partition_size", "FLAGS_weight_only_linear_arch"),
    *_variables("warns", OUR_KERNELS, "FD_USE_MACHETE", "FD_USE_PHI_FP8_QUANT", "FD_ENABLE_PDL", fine=("1",)),
    *_variables("warns", OUR_KERNELS, "FD_USE_DEEP_GEMM", "FD_USE_BLACKWELL_GEMM", "FD_USE_PHI_RMSNORM"),
    *_variables("warns", OUR_KERNELS, "FD_SiluAndMul_USE_PHI_SWIGLU"),
    *_variables("warns", "how many prompts a step takes is bounded by its tokens", "MAX_PREFILL_NUM", fine=()),
    *_variables("warns", "how many prompts a step takes is bounded by its tokens", "FD_ENABLE_MAX_PREFILL"),
    *_variables("warns", "a request that gives way is always taken up again", "FD_DISABLED_RECOVER"),
    *_variables(
        "warns",
        "no pages are kept back for running requests: one that finds none gives way, and is computed again",
        "FD_RESERVE_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL*",
        fine=(),
    ),
    *_variables("warns", "stop strings are found in the text: up to 16, 4096 characters each", "FD_MAX_STOP_SEQS_NUM", fine=()),
    *_variables("warns", "stop strings are found in the text: up to 16, 4096 characters each", "FD_STOP_SEQS_MAX_LEN", fine=()),
    *_variables("warns", "the tokenizer is chosen by the checkpoint's files", "FD_USE_HF_TOKENIZER"),
    *_variables("later", "results equal bit for bit whatever the batch", "FD_DETERMINISTIC_MODE"),
    *_variables(
        "warns", "it belongs to FD_DETERMINISTIC_MODE", "FD_DETERMINISTIC_SPLIT_KV_SIZE", "FD_DETERMINISTIC_LOG_MODE", fine=()
    ),
    *_variables("refuses", "KV pages hold the model's number format", "FD_CACHE_PARAMS", fine=("none",)),
    *_variables(
        "refuses", "these are factors of the model, which config.json says", "COMPRESSION_RATIO", "ROPE_THETA", fine=()
    ),
    *_variables("warns", "the format that block_wise_fp8 has here is fixed", "FD_FP8_QUANT_WITH_POW2SCALE"),
    *_variables(
        "warns",
        "a guess is taken where it is the token that would be drawn",
        "SPECULATE_VERIFY_USE_TOPK",
        "SPECULATE_VERIFY_USE_TARGET_SAMPLING",
    ),
    *_variables("later", "output by a schema or grammar", "FD_FILL_BITMASK_BATCH", fine=("4",)),
    *_variables("later", "output by a schema or grammar", "FD_GUIDANCE_DISABLE_ADDITIONAL", fine=("1",)),
    *_variables("later", "output by a schema or grammar", "FD_LLGUIDANCE_LOG_LEVEL"),
    *_variables("later", "a limit on reasoning", "FD_LIMIT_THINKING_CONTENT_TRUNCATE_STR", fine=("</think>",)),
    # loading, plugins
    *_variables("warns", LOADING, "FD_ENABLE_MODEL_LOAD_CACHE", "FD_ENABLE_MODEL_CACHE", "FD_FOR_TORCH_MODEL_FORMAT"),
    *_variables("warns", "host memory is taken as pages come, and given back with the server", "FD_ENABLE_SWAP_SPACE_CLEARING"),
    *_variables(
        "refuses",
        "FastDeploy's plugins do not run here, and ours are chosen otherwise",
        "FD_PLUGINS",
        fine=(),
        remedy="--plugins NAME; --list-plugins shows what is installed",
    ),
    # the server
    *_variables("warns", "--openai-http-max-concurrency bounds what is in flight", "FD_SUPPORT_MAX_CONNECTIONS", fine=()),
    *_variables("none", "a client that leaves ends its request", "FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE"),
    *_variables("warns", "who dies is noticed at once, by the end of a pipe", "FD_WORKER_ALIVE_TIMEOUT", fine=()),
    *_variables("warns", "who dies is noticed at once, by the end of a pipe", "FD_TOKEN_PROCESSOR_HEALTH_TIMEOUT", fine=()),
    *_variables(
        "warns", ENGINE_QUEUE, "FD_USE_GET_SAVE_OUTPUT_V1", "FD_ENABLE_ASYNC_LLM", "FD_ZMQ_*", "FD_CUSTOM_AR_MAX_SIZE_MB"
    ),
    *_variables("warns", ENGINE_QUEUE, "FD_ENGINE_TASK_QUEUE_WITH_SHM", "FD_ENABLE_E2W_TENSOR_CONVERT", "FMQ_CONFIG_JSON"),
    *_variables(
        "warns", ENGINE_QUEUE, "INFERENCE_MSG_QUEUE_ID", "SHM_UUID", "FD_TP_GROUP_GID_OFFSET", "FD_CACHE_PROC_*", fine=()
    ),
    *_variables("warns", ENGINE_QUEUE, "ZMQ_SEND_BATCH_DATA", fine=("1",)),
    *_variables("warns", ENGINE_QUEUE, "FD_ENABLE_INTERNAL_ADAPTER", "FD_ENABLE_RETURN_TEXT"),
    # what is told of it
    *_variables("none", NO_TELEMETRY, "DO_NOT_TRACK"),
    *_variables("warns", NO_TELEMETRY, "FD_USAGE_STATS_SERVER", "FD_USAGE_SOURCE", "FD_CONFIG_ROOT", fine=()),
    *_variables("warns", OUR_LOG, "FD_LOG_DIR", "FD_LOG_MAX_LEN", "FD_LOG_BACKUP_COUNT", fine=()),
    *_variables("warns", OUR_LOG, "FD_CONSOLE_SCHEDULER_METRICS", "FD_CONSOLE_DECODE_LOG_INTERVAL", fine=()),
    *_variables("warns", "the log never holds prompts or answers", "FD_LOG_REQUESTS", "FD_LOG_REQUESTS_LEVEL"),
    *_variables("refuses", TRACES, "FD_TRACE", fine=("off",), remedy="--otlp-traces-endpoint URL"),
    *_variables("refuses", TRACES, "TRACES_ENABLE", fine=("false", "0"), remedy="--otlp-traces-endpoint URL"),
    *_variables(
        "warns",
        TRACES,
        "TRACES_EXPORTER",
        "EXPORTER_OTLP_*",
        "FD_OTLP_*",
        "FD_SERVICE_NAME",
        "FD_HOST_NAME",
        "FD_JOB_ID",
        fine=(),
    ),
    # several servers, other models, other hardware
    *_variables("later", OTHER_SERVERS, "FD_ENABLE_MULTI_API_SERVER"),
    *_variables(
        "warns", ONE_ROLE, "FD_PD_CHANGEABLE", "FD_PD_REORDER", "FD_ENABLE_CACHE_TASK", "FD_ENABLE_PD_RDMA_EAGER_CONNECT"
    ),
    *_variables(
        "warns", ONE_ROLE, "PREFILL_CONTINUOUS_REQUEST_DECODE_RESOURCES", "FD_PREFILL_WAIT_DECODE_RESOURCE_SECONDS", fine=()
    ),
    *_variables("warns", ONE_ROLE, "PREFILL_NODE_ONE_STEP_STOP", "FLAGS_use_pd_disaggregation*"),
    *_variables("warns", "there is no store of KV pages that servers share", "FILE_BACKEND_STORAGE_DIR", fine=()),
    *_variables(
        "warns",
        "the pages of a request that gave way are kept by --enable-prefix-caching",
        "FD_SAVE_OUTPUT_CACHE_FOR_PREEMPTED_REQUEST",
        fine=("1",),
    ),
    *_variables("later", NEW_WEIGHTS, "FD_ENABLE_RL", "FD_ENABLE_V1_UPDATE_WEIGHTS"),
    *_variables("warns", NO_EXPERTS, "FD_MOE_*", "FD_NVFP4_*", "FD_USE_PHI_MOE_*", "FD_EP_*", fine=()),
    *_variables("warns", NO_EXPERTS, "FD_USE_PFCC_DEEP_EP", "FD_USE_AGGREGATE_SEND"),
    *_variables("warns", TEXT_ONLY, "ENCODE_FEATURE_*", fine=()),
    *_variables("warns", OTHER_HARDWARE, "FD_XPU_*", "FD_HPU_*", fine=()),
    *_variables("warns", "a CPU computes in the number format that --dtype says", "FD_CPU_USE_BF16", fine=("false", "0")),
    *_variables(
        "warns",
        "compiled kernels lie where their compiler puts them",
        "FD_TRITON_KERNEL_CACHE_DIR",
        "FD_BUILDING_ARCS",
        fine=(),
    ),
    ForeignWord("FastDeploy has no variable of this name that is known here", "unknown", env="FD_*"),
)

WORDS: tuple[ForeignWord, ...] = FLAGS + VARIABLES
