//! The API engine. (Tour to come with the parts.)

pub mod cache;
pub mod committer;
pub mod object;
pub mod store;
