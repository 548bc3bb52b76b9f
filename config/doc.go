// Package config declares every setting in one table and loads the files, environment and
// flags that set them.
//
// cmd calls Load and hands the immutable *Config to whoever needs it; profiles turns it into
// what the deciders read. It is the only package that imports viper and the YAML decoder.
//
// It does not know what a rule means (profiles parses rule texts), never writes the human's
// file, never falls back to defaults when a file is wrong, and logs nothing: it returns all
// problems at once, each with file, line and column.
//
// Files are YAML (also JSON, which is read as YAML, and TOML, whose positions are found by
// looking for the key's line, because viper's TOML reader reports none). Anchors and aliases
// work; merge keys ("<<") and several documents in one file are refused.
package config
