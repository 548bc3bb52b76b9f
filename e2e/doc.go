// Package e2e tells what gatun does as stories: scripts that run the built binary in a network of
// namespaces, watch what the program sees and count what the router sees.
//
// testdata/story holds one story per verdict and protocol, told for `run` and `up`, IPv4 and
// IPv6; testdata/sb one or more per specified behaviour; testdata/script holds the others. Nobody
// imports this package. It needs Linux and root, and skips, saying so, without them.
package e2e
