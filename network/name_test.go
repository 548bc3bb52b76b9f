package network

import "testing"

func TestLocalName(t *testing.T) {
	for name, want := range map[string]bool{
		"printer": true, "localhost": true, "a.localhost": true, "nas.local": true, "x.test": true, "vault.internal": true,
		"nas.lan": true, "router.home.arpa": true, "home.arpa": true, "srv.corp": true,
		"":            false, // the root
		"example.org": false, "local.example.org": false, "lan.example": false, "xhome.arpa": false, "1.in-addr.arpa": false,
	} {
		if got := LocalName(name); got != want {
			t.Errorf("LocalName(%q) = %v", name, got)
		}
	}
}

func TestConnectivityName(t *testing.T) {
	for name, want := range map[string]bool{"detectportal.firefox.com": true, "firefox.com": false, "a.captive.apple.com": false, "": false} {
		if got := ConnectivityName(name); got != want {
			t.Errorf("ConnectivityName(%q) = %v", name, got)
		}
	}
}
