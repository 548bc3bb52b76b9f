// Package config declares every setting in one table, loads the files, environment and flags
// that set them, and keeps what is changed while the program runs.
//
// cmd calls Load and hands the immutable *Config to whoever needs it; profiles turns it into
// what the deciders read. A change at run time is an Edit of the Data: Load says what it would
// make of the whole, Commit writes it. It is the only package that reads or writes policy, and
// the only one that imports viper and the YAML decoder.
//
// It does not know what a rule means (profiles parses rule texts) nor whether a condition holds
// (status says that), never writes the human's file, never falls back to defaults when a file is
// wrong, and logs nothing: it returns all problems at once, each with file, line and column.
//
// The human's files are YAML (also JSON, which is read as YAML, and TOML, whose positions are
// found by looking for the key's line, because viper's TOML reader reports none). Anchors and
// aliases work; merge keys ("<<") and several documents in one file are refused. So are files
// and directories that others can write to or that are symbolic links: whoever writes the policy
// is the policy's owner.
//
// The data directory has config.json with the settings, profiles/ with one file for each
// profile, both in the format of the human's file, and temporary.json with what is the caller's.
// They are replaced as a whole, readable by their owner only. A file of a profile ends with a
// line of three dots, so that one that was cut off is not taken for the whole.
//
// The JSON schema, the settings reference and the state of the settings are made from the table.
package config
