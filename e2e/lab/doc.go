// Package lab builds small networks out of namespaces and runs gatun and ordinary programs in
// them, so that what gatun claims is seen on real packets: a host, a twin beside it without
// gatun (the direct control), a router that counts every packet, a server and a far server.
//
//	host 192.0.2.2  --+
//	                  +-- br0 192.0.2.1 router 198.51.100.1 -- 198.51.100.10 server -- 203.0.113.10 far
//	twin 192.0.2.3  --+            (and the same with 2001:db8:1::/64, :2::/64, :3::/64)
//
// The scripts (e2e), the proofs (e2e/prove) and the benchmark (e2e/bench) use it. It needs Linux
// and root. It knows gatun only as a binary with a command line: it imports nothing of ours, and
// it never touches the machine's own namespace, beyond folders of its own in /etc/netns.
package lab
