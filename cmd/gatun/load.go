package main

import (
	"os"
	"path/filepath"

	"gatun/config"
	"gatun/dns"
	"gatun/profiles"
)

// configSource is what to read: the file that was named, or the usual one, which need not
// exist, with everything beside it that counts. Without root the usual one is in the user's
// own folder.
func configSource(named string) config.Source {
	src := config.Source{File: named, Dir: true, Env: os.Environ(), CheckRule: profiles.CheckRule, CheckResolver: dns.CheckResolver}
	if named != "" {
		return src
	}
	src.File, src.Optional = defaultConfig, true
	if os.Geteuid() > 0 {
		dir, err := os.UserConfigDir()
		if err != nil { // no home: nothing to read
			return config.Source{Env: src.Env}
		}
		src.File = filepath.Join(dir, "gatun", "gatun.yaml")
	}
	return src
}
