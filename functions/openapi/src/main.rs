//! Writes the description of the API to the file that it is given: `openapi openapi.json`.

use std::{env, fs, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [file] = arguments.as_slice() else {
        eprintln!("usage: openapi FILE");
        return ExitCode::from(2);
    };
    match fs::write(file, openapi::text()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}
