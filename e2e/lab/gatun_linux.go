package lab

// TrickNames are the ways past a TUN that a program without privileges has (peer trick), each
// with what it does.
func TrickNames() map[string]string {
	return map[string]string{
		"bindtodevice": "SO_BINDTODEVICE to the physical device",
		"bindaddr":     "bind to the physical address",
		"unicastif":    "IP_UNICAST_IF, IPV6_UNICAST_IF",
		"pktinfo-if":   "IP_PKTINFO naming the device",
		"pktinfo-src":  "IP_PKTINFO naming the source",
		"pktinfo-both": "both, on a bound socket",
	}
}
