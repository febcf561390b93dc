//! Converts library errors to diagnostics.

use crate::diagnostic::Diagnostic;

impl From<danlu_loader::LoadError> for Diagnostic {
    fn from(error: danlu_loader::LoadError) -> Self {
        Self::from_error(&error, error.hint()).with_details(error.details().to_vec())
    }
}

impl From<danlu_serve::ServeError> for Diagnostic {
    fn from(error: danlu_serve::ServeError) -> Self {
        Self::from_error(&error, error.hint()).with_details(error.details().to_vec())
    }
}

/// Converts a library error to a diagnostic with the same message and the same hint.
macro_rules! from_library {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Diagnostic {
            fn from(error: $error) -> Self {
                Self::from_error(&error, error.hint())
            }
        }
    )*};
}

from_library!(
    danlu_model::ModelError,
    danlu_adapter::AdapterError,
    danlu_data::DataError,
    danlu_generate::GenerateError,
    danlu_hub::HubError,
    danlu_train::TrainError,
    danlu_report::ReportError,
);
