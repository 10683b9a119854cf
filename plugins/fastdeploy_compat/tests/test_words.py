"""The table as a whole: every flag and variable that FastDeploy documents is known, and each is told of as the table says."""

import pytest

from core.compose.configuration import read
from core.compose.first_pass import first_pass
from core.compose.vocabulary import Vocabulary
from core.plugin_manager import PluginManager
from fastdeploy_compat.words import ALIASES, FLAGS, VARIABLES, WORDS

# As of FastDeploy's argument parser and its list of variables, April 2026.
SERVER = """--port --host --workers --metrics-port --controller-port --max-waiting-time --max-concurrency --enable-mm-output
--timeout-graceful-shutdown --timeout --api-key --config"""
ENGINE = """--model --served-model-name --revision --model-config-name --tokenizer-base-url --max-model-len
--block-size --task --runner --convert --override-pooler-config --use-warmup --limit-mm-per-prompt --mm-processor-kwargs
--max-encoder-cache --max-processor-cache --enable-mm --reasoning-parser --chat-template --tool-call-parser
--tool-parser-plugin --model-impl --load-choices --model-loader-extra-config --quantization --dynamic-load-weight
--load-strategy --rsync-config --deploy-modality --speculative-config --guided-decoding-backend
--guided-decoding-disable-any-whitespace --enable-logprob --max-logprobs --logprobs-mode --seed --enable-early-stop
--early-stop-config --logits-processors --enable-entropy --lm_head-fp32 --moe-gate-fp32 --tensor-parallel-size -tp
--data-parallel-size --local-data-parallel-id --disable-custom-all-reduce --enable-custom-all-reduce
--enable-expert-parallel --enable-eplb --eplb-config --enable-chunked-moe --chunked-moe-size
--disable-sequence-parallel-moe --use-internode-ll-two-stage --ep-prefill-use-worst-num-tokens
--shutdown-comm-group-if-worker-idle --routing-replay-config --ips --engine-worker-queue-port --cache-queue-port
--enable-overlap-schedule --no-enable-overlap-schedule --max-num-seqs --gpu-memory-utilization --num-gpu-blocks-override
--max-num-batched-tokens --kv-cache-ratio --swap-space --enable-prefix-caching --no-enable-prefix-caching
--enable-output-caching --enable-chunked-prefill --max-num-partial-prefills --max-long-partial-prefills
--long-prefill-token-threshold --static-decode-blocks --prealloc-dec-block-slot-num-threshold --disable-chunked-mm-input
--kvcache-storage-backend --write-policy --plas-attention-config --graph-optimization-config --use-cudagraph
--splitwise-role --innode-prefill-ports --cache-transfer-protocol --pd-comm-port --rdma-comm-ports --router
--scheduler-name --scheduler-max-size --scheduler-ttl --scheduler-host --scheduler-port --scheduler-db
--scheduler-password --scheduler-topic --scheduler-min-load-score --scheduler-load-shards-num --scheduler-sync-period
--scheduler-expire-period --scheduler-release-load-expire-period --scheduler-reader-parallel
--scheduler-writer-parallel --scheduler-reader-batch-size --scheduler-writer-batch-size"""
ENVIRONMENT = """FD_MODEL_SOURCE FD_MODEL_CACHE FD_SAMPLING_CLASS ENABLE_V1_KVCACHE_SCHEDULER FD_ATTENTION_BACKEND
FD_DISABLE_CHUNKED_PREFILL FD_ENC_DEC_BLOCK_NUM FD_ENABLE_MAX_PREFILL FD_DISABLED_RECOVER FD_MAX_STOP_SEQS_NUM
FD_STOP_SEQS_MAX_LEN FD_USE_HF_TOKENIZER FD_USE_MACHETE FD_USE_DEEP_GEMM FD_USE_BLACKWELL_GEMM FD_CACHE_PARAMS FD_PLUGINS
FD_API_KEY FD_SUPPORT_MAX_CONNECTIONS FD_USE_GET_SAVE_OUTPUT_V1 FD_ENABLE_MODEL_LOAD_CACHE FD_ENABLE_MODEL_CACHE
FD_FOR_TORCH_MODEL_FORMAT FD_ENABLE_SWAP_SPACE_CLEARING FD_RESERVE_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL
FD_WORKER_ALIVE_TIMEOUT FD_TOKEN_PROCESSOR_HEALTH_TIMEOUT FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE FD_FILL_BITMASK_BATCH
FD_GUIDANCE_DISABLE_ADDITIONAL FD_LLGUIDANCE_LOG_LEVEL FD_ENABLE_PDL FD_ENABLE_ASYNC_LLM FD_DETERMINISTIC_MODE
FD_DETERMINISTIC_SPLIT_KV_SIZE FD_DETERMINISTIC_LOG_MODE FD_CUSTOM_AR_MAX_SIZE_MB FD_LIMIT_THINKING_CONTENT_TRUNCATE_STR
FD_USE_PHI_FP8_QUANT FD_FP8_QUANT_WITH_POW2SCALE FD_USE_PHI_RMSNORM FD_SiluAndMul_USE_PHI_SWIGLU FD_LOG_DIR FD_LOG_LEVEL
FD_DEBUG FD_LOG_REQUESTS FD_LOG_REQUESTS_LEVEL FD_LOG_MAX_LEN FD_LOG_BACKUP_COUNT FD_CONSOLE_SCHEDULER_METRICS
FD_CONSOLE_DECODE_LOG_INTERVAL FD_TRACE TRACES_ENABLE FD_SERVICE_NAME FD_HOST_NAME TRACES_EXPORTER EXPORTER_OTLP_ENDPOINT
EXPORTER_OTLP_HEADERS FD_OTLP_EXPORTER_SCHEDULE_DELAY_MILLIS FD_OTLP_EXPORTER_MAX_EXPORT_BATCH_SIZE FD_JOB_ID DO_NOT_TRACK
FD_USAGE_STATS_SERVER FD_USAGE_SOURCE FD_CONFIG_ROOT FD_ENABLE_MULTI_API_SERVER FD_ENABLE_INTERNAL_ADAPTER
FD_ENABLE_RETURN_TEXT FD_ZMQ_SNDHWM FD_ZMQ_RECV_REQUEST_SERVER_PORT FD_ZMQ_CONTROL_CMD_SERVER_PORTS ZMQ_SEND_BATCH_DATA
FD_PD_CHANGEABLE FD_PD_REORDER FD_ENABLE_CACHE_TASK FD_EP_MAX_PREFETCH_TASK_NUM PREFILL_CONTINUOUS_REQUEST_DECODE_RESOURCES
FD_PREFILL_WAIT_DECODE_RESOURCE_SECONDS FD_ENABLE_PD_RDMA_EAGER_CONNECT FD_CACHE_PROC_EXIT_TIMEOUT FD_CACHE_PROC_ERROR_COUNT
FILE_BACKEND_STORAGE_DIR FD_SAVE_OUTPUT_CACHE_FOR_PREEMPTED_REQUEST FD_ENABLE_V1_UPDATE_WEIGHTS FD_ENABLE_RL
FD_TP_GROUP_GID_OFFSET FD_ENGINE_TASK_QUEUE_WITH_SHM FD_ENABLE_E2W_TENSOR_CONVERT FMQ_CONFIG_JSON FD_MOE_BACKEND
FD_MOE_MXFP4_BACKEND FD_NVFP4_GEMM_BACKEND FD_MOE_PROB_IN_ADVANCE FD_USE_PHI_MOE_TOPK FD_USE_PHI_MOE_PERMUTE
FD_USE_PFCC_DEEP_EP FD_USE_AGGREGATE_SEND FD_XPU_MOE_FFN_QUANT_TYPE_MAP FD_HPU_CHUNK_SIZE ENCODE_FEATURE_ENDPOINT
FD_TRITON_KERNEL_CACHE_DIR FD_BUILDING_ARCS FD_CPU_USE_BF16 MAX_PREFILL_NUM FLAGS_max_partition_size
FLAGS_weight_only_linear_arch FLAGS_use_pd_disaggregation FLAGS_use_pd_disaggregation_per_chunk PREFILL_NODE_ONE_STEP_STOP
SPECULATE_VERIFY_USE_TOPK SPECULATE_VERIFY_USE_TARGET_SAMPLING INFERENCE_MSG_QUEUE_ID SHM_UUID COMPRESSION_RATIO ROPE_THETA"""


INSTALLED = PluginManager.discover()


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(INSTALLED)


def told(argv=(), env=None):
    found = read(first_pass(argv, env or {}), INSTALLED)
    return [str(problem) for problem in found.problems], [str(remark) for remark in found.remarks]


@pytest.mark.parametrize("name", f"{SERVER} {ENGINE}".split())
def test_every_flag_is_known(vocabulary, name):
    assert name == "--config" or vocabulary.find(name.replace("_", "-")) is not None


@pytest.mark.parametrize("name", ENVIRONMENT.split())
def test_every_variable_is_known(vocabulary, name):
    word = vocabulary.find(name) or vocabulary.begins(name)
    assert word is not None
    assert not any(foreign.effect == "unknown" for foreign in word.foreign)


@pytest.mark.parametrize("word", FLAGS, ids=lambda word: f"{word.name}{','.join(word.values)}")
def test_every_flag_is_told_of_as_the_table_says(vocabulary, word):
    if vocabulary.words[word.name].has_meaning and not word.values:
        return
    value = word.values[0].replace("*", "}") if word.values else "7"
    problems, remarks = told([word.name] if word.switch else [word.name, value])
    assert len(problems) == (word.effect in ("refuses", "later"))
    assert len(remarks) == (word.effect == "warns")
    for text in (*problems, *remarks):
        assert word.name.replace("_", "-") in text
        assert word.reason in text
    for fine in word.fine:
        assert told([word.name, fine]) == ([], [])


@pytest.mark.parametrize("word", VARIABLES, ids=lambda word: word.name)
def test_every_variable_is_told_of_as_the_table_says(vocabulary, word):
    name = word.name.replace("*", "SOMETHING")
    problems, remarks = told(env={name: "7"})
    assert len(problems) == (word.effect in ("refuses", "later", "unknown"))
    assert len(remarks) == (word.effect == "warns")
    for fine in word.fine:
        assert told(env={name: fine}) == ([], [])


def test_no_word_stands_twice_and_every_reason_is_half_a_sentence():
    names = [(word.name, word.values) for word in WORDS]
    assert len(set(names)) == len(names)
    for word in WORDS:
        assert word.reason
        assert not word.reason.endswith(".")
    assert all(alias.summary.endswith("(FastDeploy)") for alias in ALIASES)


def test_those_with_another_name_here():
    argv = ["--timeout-graceful-shutdown", "0", "--scheduler-max-size", "-1"]
    found = read(first_pass(argv, {"FD_DEBUG": "1"}), INSTALLED)
    assert found.problems == []
    assert found.settings["drain_timeout"] == float("inf")
    assert found.settings["max_waiting"] == 2**31 - 1
    assert found.settings["log_level"] == "debug"
    assert read(first_pass([], {"FD_LOG_LEVEL": "WARNING"}), INSTALLED).settings["log_level"] == "warning"
