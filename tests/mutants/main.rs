//! The core with its unit tests, as a crate of its own: the files where a wrong line leaks a credential or returns a wrong
//! result, and what they need. It compiles in seconds, so `run` can change one place after the other.

#![allow(dead_code, unreachable_pub, unused_imports, missing_docs, reason = "the program uses and documents all of it")]

#[path = "../../src/domain"]
mod domain {
    pub mod quote;
    pub mod tick;

    pub mod chat {
        pub mod app;
        pub mod command;
        pub mod error_code;
        pub mod usersig;
    }

    pub mod fleet {
        pub mod lease;
    }

    pub mod pairs {
        pub mod fence;
        #[path = "../../../tests/unit/fence.rs"]
        mod fence_tests;
        pub mod pair;
        mod sync;
    }

    pub mod policy {
        pub mod outcome;
        pub mod parking;
    }

    pub mod reads {
        pub mod fence;
        pub mod scope;
    }
}

#[path = "../../src/limits"]
mod limits {
    mod rate_limiter;
}
