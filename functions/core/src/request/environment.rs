//! Which environment variables a request may set: all but those that the platform sets, and those by which `env` would be
//! a shell in the pod or a way for the trainer's credentials out of it.
//!
//! Sources: sudo's `env_delete`, glibc's `unsecvars`, the manuals of the programs that a training image has, and what
//! torch, transformers and botocore read. `tests/contract/environment.json` has the trick of each name, and the trainer's
//! tests play it.

/// Names, in which `*` stands for any text.
struct Rule {
    names: &'static [&'static str],
    /// Why a request may not set them.
    why: &'static str,
    /// Whether the programs that read them take them in any case.
    in_any_case: bool,
}

/// What the platform, the operator or torchrun set.
const RESERVED: [&str; 32] = [
    "FRAMEWORK",
    "MODEL_ID",
    "RUN_ID",
    "NUM_NODES",
    "GPUS_PER_NODE",
    "DATASET_URI",
    "LOGS_URI",
    "CONFIG_URI",
    "CONFIG_PATH",
    "SUBMISSION",
    "RESUME",
    "MAX_RESTARTS",
    "POD_UID",
    "TERMINATION_LOG",
    "TRAINER_LOG_DIR",
    "TRAINING_EXTRA_ARGS_JSON",
    "OMP_NUM_THREADS",
    "NVIDIA_VISIBLE_DEVICES",
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "ROLE_NAME",
    "ROLE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "CHECKPOINT*",
    "MASTER_*",
    "PET_*",
    "TORCHELASTIC_*",
    "TORCH_ELASTIC_*",
];

/// What no request may set.
const REFUSED: [Rule; 19] = [
    Rule::of(
        &[
            "LD_*",
            "DYLD_*",
            "GLIBC_TUNABLES",
            "GCONV_PATH",
            "GETCONF_DIR",
            "LOCPATH",
            "NLSPATH",
            "LIBPATH",
            "SHLIB_PATH",
        ],
        "it changes what the dynamic loader and the C library load",
    ),
    Rule::of(&["HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS", "RESOLV_*"], "it changes which host a name stands for"),
    Rule::of(&["PYTHON*", "_PYTHON*", "MPLBACKEND"], "it changes what the Python interpreter or torchrun runs"),
    Rule::of(
        &[
            "BROWSER",
            "EDITOR",
            "VISUAL",
            "PAGER",
            "MANPAGER",
            "LESSOPEN",
            "LESSCLOSE",
            "SSH_ASKPASS",
            "SUDO_ASKPASS",
            "TAR_OPTIONS",
            "RSYNC_RSH",
            "MAKEFLAGS",
            "MAKEFILES",
            "GNUMAKEFLAGS",
            "VIMINIT",
            "EXINIT",
            "TORCH_ADDR2LINE_BINARY",
            "_WANDB_CORE_PATH",
            "WANDB_*_EXECUTABLE",
        ],
        "it names a program that other programs start",
    ),
    Rule::of(
        &[
            "GIT_SSH",
            "GIT_SSH_COMMAND",
            "GIT_PROXY_COMMAND",
            "GIT_ASKPASS",
            "GIT_EDITOR",
            "GIT_SEQUENCE_EDITOR",
            "GIT_PAGER",
            "GIT_EXTERNAL_DIFF",
            "GIT_EXEC_PATH",
            "GIT_TEMPLATE_DIR",
            "GIT_CONFIG*",
            "GIT_DIR",
            "GIT_COMMON_DIR",
            "GIT_WORK_TREE",
            "GIT_OBJECT_DIRECTORY",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES",
            "GIT_SSL_*",
            "GIT_ALLOW_PROTOCOL",
            "GIT_PYTHON_GIT_EXECUTABLE",
        ],
        "it changes what git starts and whom it trusts",
    ),
    Rule::of(
        &[
            "BASH_ENV",
            "ENV",
            "BASHOPTS",
            "SHELLOPTS",
            "PS0",
            "PS1",
            "PS2",
            "PS4",
            "PROMPT_COMMAND",
            "SHELL",
            "IFS",
            "CDPATH",
            "GLOBIGNORE",
            "FPATH",
            "ZDOTDIR",
        ],
        "shells run it, or what it names",
    ),
    Rule::of(
        &[
            "PERL5*",
            "PERLLIB",
            "PERLIO_DEBUG",
            "RUBYOPT",
            "RUBYLIB",
            "GEM_PATH",
            "BUNDLE_GEMFILE",
            "NODE_OPTIONS",
            "NODE_PATH",
            "NODE_EXTRA_CA_CERTS",
            "NODE_TLS_REJECT_UNAUTHORIZED",
            "NODE_REPL_EXTERNAL_MODULE",
            "JAVA_TOOL_OPTIONS",
            "JDK_JAVA_OPTIONS",
            "_JAVA_OPTIONS",
            "CLASSPATH",
            "LUA_INIT*",
            "LUA_PATH*",
            "LUA_CPATH*",
            "R_PROFILE*",
            "R_ENVIRON*",
            "R_LIBS*",
            "R_HOME",
            "JULIA_LOAD_PATH",
            "JULIA_DEPOT_PATH",
            "PHPRC",
            "PHP_INI_SCAN_DIR",
            "DOTNET_STARTUP_HOOKS",
        ],
        "it changes what an interpreter runs",
    ),
    Rule::of(
        &[
            "PATH",
            "HOME",
            "XDG_*",
            "TMPDIR",
            "TEMP",
            "TMP",
            "CURL_HOME",
            "WGETRC",
            "SYSTEM_WGETRC",
            "NETRC",
            "TERMINFO*",
            "TERMCAP",
        ],
        "programs look there for other programs, their settings or compiled code",
    ),
    Rule::of(
        &[
            "CC",
            "CXX",
            "CPP",
            "AR",
            "LDSHARED",
            "CFLAGS",
            "CXXFLAGS",
            "CPPFLAGS",
            "LDFLAGS",
            "CPATH",
            "C_INCLUDE_PATH",
            "CPLUS_INCLUDE_PATH",
            "LIBRARY_PATH",
            "COMPILER_PATH",
            "GCC_EXEC_PREFIX",
            "CCC_OVERRIDE_OPTIONS",
            "CUDA_HOME",
            "CUDA_PATH",
            "CUDA_INC_PATH",
            "CUDACXX",
            "CUDAHOSTCXX",
            "NVCC_*",
            "PYTORCH_NVCC",
            "ROCM_HOME",
            "ROCM_PATH",
            "CUDNN_HOME",
            "CUDNN_PATH",
            "OMP_PREFIX",
            "CONDA_EXE",
            "CONDA_PREFIX",
        ],
        "it changes what torch and Triton compile, and with which compiler",
    ),
    Rule::of(
        &[
            "TORCH_HOME",
            "TORCH_HUB",
            "TORCH_EXTENSIONS_DIR",
            "TORCHINDUCTOR_*_DIR",
            "TORCHINDUCTOR_REDIS_*",
            "PYTORCH_KERNEL_CACHE_PATH",
            "CUDA_CACHE_PATH",
            "TRITON_*_DIR",
            "TRITON_*PATH*",
            "TRITON_HOME",
            "TRITON_CACHE_MANAGER",
            "TRITON_*_BACKEND",
            "NUMBA_CACHE_DIR",
            "HF_MODULES_CACHE",
            "LOCAL_KERNELS",
            "KERNELS_CACHE",
            "HF_KERNELS_CACHE",
        ],
        "code is loaded from there",
    ),
    Rule::of(
        &["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_PYTHON_NATIVE_USER_GRAPH_ORDER_FN", "*TRUST_REMOTE_CODE"],
        "it lets what is loaded as data run as code",
    ),
    Rule::of(
        &[
            "AWS_*",
            "BOTO*",
            "S3_ENDPOINT*",
            "S3_USE_HTTPS",
            "S3_VERIFY_SSL",
            "FSSPEC_*",
            "MLFLOW_S3_*",
            "MLFLOW_TRACKING_AWS_SIGV4",
        ],
        "it changes which AWS credentials are used, or who is sent them",
    ),
    Rule::of(&["KUBECONFIG", "KUBERNETES_*"], "it changes which cluster is talked to, and as whom"),
    Rule::of(
        &["HF_ENDPOINT", "HF_INFERENCE_ENDPOINT", "HUGGINGFACE_CO_STAGING", "HF_TOKEN_PATH"],
        "it changes which hub is talked to, or which token that is sent",
    ),
    Rule { in_any_case: true, ..Rule::of(&["*_PROXY"], "it changes through whom requests go") },
    Rule::of(
        &[
            "SSL_*",
            "SSLKEYLOGFILE",
            "OPENSSL_*",
            "*_CA_BUNDLE",
            "*_CA_CERTS",
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
            "GNUTLS_*",
            "*_INSECURE_DISABLE_SSL",
            "*_INSECURE_TLS",
            "KRB5_*",
        ],
        "it changes whom TLS trusts, and which code does that",
    ),
    Rule::of(
        &[
            "NCCL_*_PLUGIN",
            "NCCL_CONF_FILE",
            "NVSHMEM_*_PLUGIN",
            "NVSHMEM_LIB_DIR",
            "UCX_MODULE*",
            "UCC_COMPONENT_PATH",
            "UCC_CONFIG_FILE",
            "OMPI_MCA_*",
            "PMIX_MCA_*",
            "PRTE_MCA_*",
            "OPAL_PREFIX",
            "OPAL_*LIBDIR",
            "PMIX_PREFIX",
            "I_MPI_*_LIBRARY",
            "I_MPI_HYDRA_*",
            "HYDRA_LAUNCHER*",
            "HYDRA_BOOTSTRAP*",
            "FI_PROVIDER_PATH",
            "RDMAV_DRIVERS",
            "IBV_DRIVERS",
            "CUDA_INJECTION*",
            "NVTX_INJECTION*",
            "OMP_TOOL*",
            "INTEL_LIBITTNOTIFY*",
            "INTEL_JIT_PROFILER*",
            "HSA_TOOLS_LIB",
            "ROCP_TOOL_LIB",
            "OCL_ICD_*",
            "OPENCL_VENDOR_PATH",
            "VK_DRIVER_FILES",
            "VK_ICD_FILENAMES",
            "VK_LAYER_PATH",
            "VK_ADD_*",
            "TPU_LIBRARY_PATH",
            "PJRT_*_LIBRARY_PATH*",
            "LLVM_PASS_PLUGIN_PATH",
            "NUMBA_CUDA_DRIVER",
            "HDF5_PLUGIN_PATH",
        ],
        "it names a library to load into the trainer",
    ),
    Rule::of(
        &[
            "NVIDIA_*",
            "AMD_VISIBLE_DEVICES",
            "ASCEND_RUNTIME_OPTIONS",
            "ASCEND_VISIBLE_DEVICES",
            "HABANA_VISIBLE_DEVICES",
        ],
        "the node's container runtime gives devices and libraries by it",
    ),
    Rule::of(&["PIP_*", "UV_*"], "it changes which packages are installed"),
];

/// What a rule above would refuse, and is harmless. The operator sets `PYTHONUNBUFFERED` to 1 whatever a request says.
const HARMLESS: [&str; 13] = [
    "NVIDIA_TF32_OVERRIDE",
    "PYTHONASYNCIODEBUG",
    "PYTHONDEVMODE",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONFAULTHANDLER",
    "PYTHONHASHSEED",
    "PYTHONIOENCODING",
    "PYTHONMALLOC",
    "PYTHONNOUSERSITE",
    "PYTHONPROFILEIMPORTTIME",
    "PYTHONTRACEMALLOC",
    "PYTHONUNBUFFERED",
    "PYTHONUTF8",
];

// === impl Rule ===

impl Rule {
    const fn of(names: &'static [&'static str], why: &'static str) -> Self {
        Self { names, why, in_any_case: false }
    }

    fn refuses(&self, name: &str) -> bool {
        let upper = if self.in_any_case { name.to_ascii_uppercase() } else { name.to_owned() };
        self.names.iter().any(|pattern| matches(pattern, &upper))
    }
}

/// What is wrong with the name of an environment variable, by code and sentence; or with its value, where that is known.
pub(super) fn variable(name: &str, value: Option<&str>) -> Option<(&'static str, String)> {
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !begins || name.len() > 256 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        let detail = "must have a name of at most 256 letters, digits and _, not beginning with a digit";
        return Some(("format", detail.to_owned()));
    }
    if HARMLESS.contains(&name) {
        return None;
    }
    if RESERVED.iter().any(|pattern| matches(pattern, name)) {
        return Some(("reserved", "is set by the platform; choose another name".to_owned()));
    }
    if let Some(rule) = REFUSED.iter().find(|rule| rule.refuses(name)) {
        return Some(("not_allowed", format!("is not for a request to set: {}", rule.why)));
    }
    // torch looks for the module that a word with a dot names, and imports what the word begins with.
    let imports = name == "TORCH_LOGS" && value.is_none_or(|value| value.contains('.'));
    imports.then(|| ("not_allowed", "must have no dot in its value: torch would import the module".to_owned()))
}

/// Whether a name is what a pattern says, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    // Each way to go on after the star; a pattern has two at most, and a name 256 characters.
    (0..=name.len()).filter_map(|at| name.get(at..)).any(|tail| matches(rest, tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::caller::Caller,
        api::problem::Problem,
        request::{
            TrainingJobRequest,
            tests::{body, rules},
        },
    };
    use serde_json::{Value, json};

    /// The table that the trainer's tests read, too.
    fn table() -> Value {
        serde_json::from_str(include_str!("../../../../tests/contract/environment.json")).expect("JSON")
    }

    fn entries<'a>(table: &'a Value, list: &str) -> &'a [Value] {
        table[list].as_array().expect("a list")
    }

    fn name(row: &Value) -> &str {
        row.as_str().or_else(|| row["name"].as_str()).expect("a name")
    }

    fn parse(variables: &Value) -> Result<TrainingJobRequest, Problem> {
        let mut body = body();
        for (field, value) in variables.as_object().expect("an object") {
            body[field] = value.clone();
        }
        TrainingJobRequest::parse(body.to_string().as_bytes(), None, &rules(), &Caller::unrestricted())
    }

    /// The pointers, codes and sentences of what is wrong.
    fn errors(variables: &Value) -> Vec<(String, &'static str, String)> {
        let problem = parse(variables).err();
        let errors = problem.into_iter().flat_map(|problem| problem.errors);
        errors.map(|error| (error.pointer, error.code, error.detail)).collect()
    }

    #[test]
    fn each_refused_name_is_named_by_pointer_and_sentence_in_both_fields() {
        for row in entries(&table(), "refused") {
            let name = name(row);
            for (field, value) in [("env", "1"), ("env_from_secrets", "hugging-face/token")] {
                let errors = errors(&json!({field: {name: value}}));
                let [(pointer, "not_allowed", detail)] = errors.as_slice() else { panic!("{name}: {errors:?}") };
                assert_eq!(*pointer, format!("/{field}/{name}"));
                assert!(detail.starts_with("is not for a request to set: ") && detail.len() > 40, "{detail}");
            }
        }
    }

    #[test]
    fn a_shell_by_two_names_is_refused_at_both() {
        let errors =
            errors(&json!({"env": {"PYTHONWARNINGS": "all:0:antigravity.x:0:0", "BROWSER": "/bin/sh -c \"id\" #%s"}}));
        let pointers: Vec<_> = errors.iter().map(|(pointer, code, _)| (pointer.as_str(), *code)).collect();
        assert_eq!(pointers, [("/env/PYTHONWARNINGS", "not_allowed"), ("/env/BROWSER", "not_allowed")]);
    }

    #[test]
    fn what_people_set_for_training_stays_theirs() {
        for row in entries(&table(), "allowed") {
            let request = parse(&json!({"env": {name(row): "1"}}));
            assert!(request.is_ok_and(|request| request.env[name(row)] == "1"), "{row}");
        }
    }

    #[test]
    fn a_value_that_imports_a_module_is_refused_and_so_is_one_that_nobody_sees() {
        let logs = |value: &str| errors(&json!({"env": {"TORCH_LOGS": value}}));
        for row in entries(&table(), "refused_values") {
            assert_eq!(name(row), "TORCH_LOGS", "no other name is judged by its value");
            let errors = logs(row["value"].as_str().expect("text"));
            assert!(
                matches!(errors.as_slice(), [(pointer, "not_allowed", _)] if pointer == "/env/TORCH_LOGS"),
                "{errors:?}"
            );
        }
        assert_eq!(logs("+dynamo,recompiles"), []);
        let errors = errors(&json!({"env_from_secrets": {"TORCH_LOGS": "hugging-face/token"}}));
        assert!(matches!(errors.as_slice(), [(_, "not_allowed", _)]), "{errors:?}");
    }

    #[test]
    fn each_rule_has_a_name_in_the_table_that_it_alone_refuses() {
        let table = table();
        let names: Vec<_> = entries(&table, "refused").iter().map(name).collect();
        for pattern in REFUSED.iter().flat_map(|rule| rule.names) {
            let is_met = |name: &&&str| matches(pattern, name) || matches(pattern, &name.to_ascii_uppercase());
            assert!(names.iter().any(|name| is_met(&name)), "no name for {pattern}");
        }
        for harmless in HARMLESS {
            assert!(REFUSED.iter().any(|rule| rule.refuses(harmless)), "{harmless} needs no exception");
            assert!(entries(&table, "allowed").iter().any(|row| name(row) == harmless), "{harmless}");
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, is_met) in [
            ("A", "A", true),
            ("A", "AB", false),
            ("A*", "A", true),
            ("A*", "BA", false),
            ("*_A", "B_A", true),
            ("*_A", "_A", true),
            ("*_A", "A", false),
            ("*_A", "B_A_", false),
            ("A_*_B", "A_x_B", true),
            ("A_*_B", "A_B", false),
            ("A_*P*", "A_xPy", true),
            ("A_*P*", "A_P", true),
            ("A_*P*", "A_x", false),
        ] {
            assert_eq!(matches(pattern, name), is_met, "{pattern} {name}");
        }
    }
}
