package sandbox

import (
	"os"
	"strconv"
	"testing"
)

// TestLiveOwnTable: the UDP sockets inside have a small table of their own (the kernel shows the size of
// a shared one as negative), and the host's setting for the children of its namespace is as it was.
func TestLiveOwnTable(t *testing.T) {
	needSandbox(t)
	const setting = "/proc/sys/net/ipv4/udp_child_hash_entries"
	before, err := os.ReadFile(setting)
	if err != nil {
		t.Skip("needs a kernel whose namespaces can have UDP tables of their own (Linux 6.2): ", err)
	}
	got := execute(t, Options{Argv: sh("cat /proc/sys/net/ipv4/udp_hash_entries")})
	if got.code != 0 || got.stdout != strconv.Itoa(udpSlots)+"\n" {
		t.Errorf("code %d: the table inside has %q slots, want %d", got.code, got.stdout, udpSlots)
	}
	if after, err := os.ReadFile(setting); err != nil || string(after) != string(before) {
		t.Errorf("the host's setting is %q, was %q (%v)", after, before, err)
	}
}
