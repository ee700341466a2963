//! Why a job failed, told from the trainer's ledger of its attempts: the operator deletes the pods of such a job, and
//! their last words with them.

use training_run::{
    attempt::{Attempt, Cause},
    text::{MAX_MESSAGE, bounded},
};

use crate::job::diagnosis::Diagnosis;

const READ_ITS_LOG: &str = "read its log (/logs?source=archive); then send the request with ?restart=true, and with \
                            resume_from_checkpoint to resume";

/// Why a job failed, told from its newest attempts in any order: the newest that says what went wrong, and how the newest
/// of all ended where that is another one. `None` where they know of nothing wrong: the operator's own words are all then.
///
/// `folder` is the URI of the submission's ledger.
#[must_use]
pub fn of_attempts(attempts: &[Attempt], folder: &str) -> Option<Diagnosis> {
    let newest = attempts.iter().max_by_key(|attempt| attempt.attempt)?;
    let told = attempts.iter().filter(|attempt| attempt.cause.is_some_and(is_failure));
    let told = told.max_by_key(|attempt| attempt.attempt);
    let failed = told.or_else(|| Some(newest).filter(|newest| newest.cause.is_none()))?;
    let mut message = sentence(failed);
    if failed.attempt != newest.attempt {
        message = format!("{message}; {}", sentence(newest));
    }
    Some(Diagnosis {
        code: "failed",
        message: bounded(&message, MAX_MESSAGE),
        evidence: vec![format!("{folder}{}", failed.attempt)],
        next_step: failed.cause.map_or(READ_ITS_LOG, next_step),
    })
}

fn sentence(attempt: &Attempt) -> String {
    let number = attempt.attempt;
    let Some(cause) = attempt.cause else {
        // What the trainer has noted of its disk while it ran.
        let noted = attempt.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        return format!("attempt {number} ended without a recorded cause{noted}");
    };
    let rank = attempt.rank.map(|rank| format!(" (rank {rank})")).unwrap_or_default();
    let message = attempt.message.as_deref().map(|message| format!(": {message}{rank}")).unwrap_or_default();
    format!("attempt {number} {}{message}", words(cause))
}

/// Whether it explains that a job failed.
fn is_failure(cause: Cause) -> bool {
    match cause {
        Cause::UserError | Cause::OutOfMemory | Cause::Storage | Cause::Crash | Cause::Superseded => true,
        Cause::Finished | Cause::Preempted => false,
    }
}

fn words(cause: Cause) -> &'static str {
    match cause {
        Cause::Finished => "finished",
        Cause::UserError => "ended by user_error",
        Cause::OutOfMemory => "ended by out_of_memory",
        Cause::Storage => "ended by storage",
        Cause::Crash => "ended by crash",
        Cause::Preempted => "was told to stop",
        Cause::Superseded => "was superseded",
    }
}

fn next_step(cause: Cause) -> &'static str {
    match cause {
        Cause::UserError => "change what the message names, and send the request with ?restart=true",
        Cause::OutOfMemory => {
            "lower batch_size or max_seq_len, or ask for more memory, and send the request with ?restart=true, and with \
             resume_from_checkpoint to resume"
        }
        Cause::Storage => {
            "make sure that the trainer may use the bucket and has room on its disk (disk_per_node_gb); then send the request with \
             ?restart=true, and with resume_from_checkpoint to resume"
        }
        Cause::Superseded => "read the status of the job that trains the run now",
        Cause::Crash | Cause::Finished | Cause::Preempted => READ_ITS_LOG,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attempt(number: u32, cause: Option<&str>, message: Option<&str>) -> Attempt {
        let rank = message.map(|_| 3);
        let body = json!({"attempt": number, "pods": ["uid"], "started_at": 1.5, "cause": cause, "rank": rank,
            "message": message, "ended_at": cause.map(|_| 2.5)});
        Attempt::parse(number, body.to_string().as_bytes()).expect("an entry")
    }

    #[test]
    fn the_newest_that_went_wrong_is_told() {
        let memory = attempt(1, Some("out_of_memory"), Some("lower batch_size"));
        let crash = attempt(2, Some("crash"), None);
        let stopped = attempt(3, Some("preempted"), Some("told to stop"));
        let open = attempt(4, None, None);
        let noted = attempt(6, None, Some("the disk is nearly full"));
        let finished = attempt(5, Some("finished"), None);
        let says_memory = "attempt 1 ended by out_of_memory: lower batch_size (rank 3)";
        for (attempts, told) in [
            (vec![], None),
            (vec![&memory], Some((says_memory.to_owned(), 1))),
            (vec![&memory, &crash], Some(("attempt 2 ended by crash".to_owned(), 2))),
            (
                vec![&stopped, &memory],
                Some((format!("{says_memory}; attempt 3 was told to stop: told to stop (rank 3)"), 1)),
            ),
            (vec![&memory, &open], Some((format!("{says_memory}; attempt 4 ended without a recorded cause"), 1))),
            (vec![&open, &stopped], Some(("attempt 4 ended without a recorded cause".to_owned(), 4))),
            (vec![&noted], Some(("attempt 6 ended without a recorded cause: the disk is nearly full".to_owned(), 6))),
            (vec![&stopped], None),
            (vec![&open, &finished], None),
        ] {
            let attempts: Vec<_> = attempts.into_iter().cloned().collect();
            let found = of_attempts(&attempts, "s3://b/attempts/s/");
            assert_eq!(found.as_ref().map(|found| found.code), told.as_ref().map(|_| "failed"), "{told:?}");
            let found = found.map(|found| (found.message, found.evidence));
            assert_eq!(found, told.map(|(message, number)| (message, vec![format!("s3://b/attempts/s/{number}")])));
        }
    }

    #[test]
    fn long_words_are_cut() {
        let long = attempt(1, Some("crash"), Some(&"x".repeat(5000)));
        let found = of_attempts(&[long], "").expect("a diagnosis");
        assert_eq!(found.message.chars().count(), MAX_MESSAGE);
    }
}
