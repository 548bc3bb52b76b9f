package route

import (
	"os"
	"strconv"
	"strings"
)

// Tracked returns how many flows the kernel's connection tracking knows and how many it may: a packet of one
// more is dropped by the kernel, which asks nobody. known is false where nothing is tracked.
func Tracked() (flows, most uint64, known bool) {
	flows, a := trackingNumber("nf_conntrack_count")
	most, b := trackingNumber("nf_conntrack_max")
	return flows, most, a && b && most > 0
}

func trackingNumber(name string) (uint64, bool) {
	b, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}
