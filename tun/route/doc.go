// Package route brings all traffic of the machine into the TUN device and keeps everything
// else from leaving: the plan (policy rules, table, addresses), the leak guard (nftables), the
// journal that lets a later process undo both, the monitor that repairs what foreign hands
// remove, and the bypass dialer that all of gatun's own traffic uses.
//
// cmd builds a Manager, calls Up, runs Run and calls Down; `gatun recover` calls Recover. The
// order is the safety: the guard goes in before the routes and comes out after them, and every
// step that fails leaves the machine closed, never open. Compute and its siblings for other
// systems are pure functions from the host's state to a list of operations as text.
//
// Package route does not open the TUN device, does not read packets, decides nothing about a
// flow, and never touches resolv.conf or any object that does not carry its own names.
package route
