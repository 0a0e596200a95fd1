//! What a client is told of how a session ended.

use api::status::{Cause, Details, Status};
use serde_json::{Value, json};

/// The Status that ends a session.
pub(super) fn exit_status(exit: Result<i32, String>) -> Value {
    match exit {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => {
            let message = format!("command terminated with non-zero exit code: exit status {code}");
            let mut status = Status::plain(500, "NonZeroExitCode", message);
            let cause = Cause { reason: "ExitCode".into(), message: code.to_string(), field: String::new() };
            status.details = Some(Box::new(Details { causes: vec![cause], ..Details::default() }));
            status.to_value()
        }
        Err(why) => Status::internal(why).to_value(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_travel_in_a_cause() {
        let status = exit_status(Ok(3));
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(exit_status(Ok(0))["status"], "Success");
    }
}
