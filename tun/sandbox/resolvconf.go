package sandbox

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxResolvConf bounds what we take over from the host's file: it travels in one message.
const maxResolvConf = 32 << 10

// resolvConf is the file the command sees: our nameservers, and from the host's file what is
// about names and not about servers. A sortlist is left out: it names networks of the host.
func resolvConf(host []byte, nameservers ...netip.Addr) []byte {
	var out bytes.Buffer
	out.WriteString("# written by gatun run: every query goes through the firewall\n")
	for _, ns := range nameservers {
		fmt.Fprintf(&out, "nameserver %s\n", ns)
	}
	if len(host) > maxResolvConf {
		host = host[:maxResolvConf]
	}
	kept := []string{"search", "domain", "options"}
	for line := range strings.Lines(string(host)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && slices.Contains(kept, fields[0]) {
			out.WriteString(strings.Join(fields, " "))
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}
