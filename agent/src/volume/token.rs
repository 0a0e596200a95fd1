//! Tokens of service accounts, asked for once and kept until it is time to renew them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::boundary::{Token, TokenRequest, Upstream, UpstreamError};

/// One pod's tokens.
#[derive(Debug, Default)]
pub struct Tokens {
    kept: Mutex<HashMap<TokenRequest, Kept>>,
}

#[derive(Clone, Debug)]
pub struct Kept {
    pub token: String,
    pub renew_at: Timestamp,
}

impl Tokens {
    pub async fn get(&self, upstream: &dyn Upstream, request: &TokenRequest) -> Result<Kept, UpstreamError> {
        let now = Timestamp::now();
        if let Some(kept) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(request)
            && kept.renew_at > now
        {
            return Ok(kept.clone());
        }
        let kept = kept(upstream.service_account_token(request).await?, now);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(request.clone(), kept.clone());
        Ok(kept)
    }
}

/// Renewed when 80 % of its life is over, as clients expect.
fn kept(token: Token, now: Timestamp) -> Kept {
    let life = token.expires_at.duration_since(now);
    let renew_at = now.checked_add(life * 4 / 5).unwrap_or(token.expires_at);
    Kept { token: token.token, renew_at }
}
