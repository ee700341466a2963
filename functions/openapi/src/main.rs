//! Writes the description of the API and the reference of the request's fields below the project's folder that it is given.

use std::{env, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [root] = arguments.as_slice() else {
        eprintln!("usage: openapi FOLDER");
        return ExitCode::from(2);
    };
    let files = [("openapi.json", openapi::text()), ("docs/reference/request-fields.md", openapi::request_fields())];
    for (file, text) in files {
        let path = Path::new(root).join(file);
        if let Err(error) = fs::write(&path, text) {
            eprintln!("cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
