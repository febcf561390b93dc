//! Chat data: files to conversations to token ids with a loss mask.
