// Package sandbox runs one command in network, mount and user namespaces of its own, so that
// every IP packet of the command and its children comes out of one tun.Device: `gatun run`.
//
// Only cmd may call it. Start builds the namespaces through a re-exec of the running program:
// main must begin with
//
//	if sandbox.IsChild() {
//		sandbox.ChildMain()
//	}
//
// before anything slow. That second process, the supervisor, sets up the network and the
// mounts, hands the device out, and waits. Once the caller's stack reads the device, Box.Go
// starts the command. The supervisor reaps all descendants of the command and ends with the
// command's own code.
//
// The supervisor keeps the caller's user and group ids: in the new user namespace they map to
// themselves (root: every id it has), so `id` and file ownership look as outside. The command
// gets no capability at all, an empty bounding set and no_new_privs: it cannot change its
// routes, addresses or mounts, and setuid programs such as sudo do not work inside. That
// holds for root too.
//
// The command keeps the caller's standard streams, terminal, process group, working directory
// and, as in a shell, every descriptor the caller's process inherited without close-on-exec.
// Nothing opened by the program itself reaches it.
//
// When the caller dies, the device is gone and the supervisor ends what is left: SIGTERM, and
// SIGKILL two seconds later. When the supervisor is killed, the command is killed with it.
//
// What it does not do: it relays no packet and decides nothing; it confines IP traffic only.
// Unix sockets reach the host as before (only those of nscd and systemd-resolved are covered,
// because they would answer names behind the firewall's back), and so do files: it is no
// jail for a hostile program that runs as root.
package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"go.uber.org/zap"
)

// ErrUnsupported is the error of Start where there are no network namespaces.
var ErrUnsupported = errors.New("run is only available on Linux")

// The exit codes of `gatun run` that are not the command's own, as in a shell.
const (
	// ExitOwnFailure: we failed before the command was started.
	ExitOwnFailure = 125
	// ExitNotExecutable: the command was found and could not be executed.
	ExitNotExecutable = 126
	// ExitNotFound: there is no such command.
	ExitNotFound = 127
	// ExitSignal plus the signal's number: a signal ended the command.
	ExitSignal = 128
)

// DeviceName is the interface inside the namespace.
const DeviceName = "gatun0"

// DefaultMTU is the MTU inside when Options.MTU is 0.
const DefaultMTU = 1500

// AddressV4 is the command's IPv4 address, a host address in a rarely used private range. An
// address of the host's own network equal to it or to GatewayV4 cannot be reached from inside.
func AddressV4() netip.Addr { return netip.AddrFrom4([4]byte{10, 139, 0, 2}) }

// GatewayV4 is the address inside that stands for us: resolv.conf names it as the nameserver,
// and with --host-loopback it maps to 127.0.0.1 of the host.
func GatewayV4() netip.Addr { return netip.AddrFrom4([4]byte{10, 139, 0, 1}) }

// AddressV6 is the command's IPv6 address, a unique local one (its prefix spells "gatun").
func AddressV6() netip.Addr { return ula(2) }

// GatewayV6 is GatewayV4's counterpart; with --host-loopback it maps to ::1 of the host.
func GatewayV6() netip.Addr { return ula(1) }

func ula(host byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 'g', 2: 'a', 3: 't', 4: 'u', 5: 'n', 15: host})
}

// Link says what the interface inside is made of.
type Link int

// The kinds of Link.
const (
	// LinkAuto takes a TUN device, and a veth pair where /dev/net/tun cannot be used.
	LinkAuto Link = iota
	// LinkTUN insists on a TUN device.
	LinkTUN
	// LinkVeth insists on a veth pair with a packet socket on its far end.
	LinkVeth
)

// Options describe the command and its surroundings.
type Options struct {
	// Argv is the command and its arguments. A name without a slash is looked up in PATH.
	Argv []string
	// Env is the command's environment; nil means ours.
	Env []string
	// Dir is the command's working directory; "" means ours.
	Dir string
	// Stdin, Stdout and Stderr become the command's own; nil means ours. They are files
	// because a terminal or a pipe must be passed as it is, not copied.
	Stdin, Stdout, Stderr *os.File
	// ResolvConf is the resolv.conf whose search and options lines hold inside too; nil means
	// that of the host. The nameservers inside are always GatewayV4 and GatewayV6.
	ResolvConf []byte
	// MTU of the interface inside, 0 means DefaultMTU.
	MTU int
	// Link chooses the kind of interface; leave it LinkAuto outside of tests.
	Link Link
	// Logger receives what could not be set up but is no reason to stop.
	Logger *zap.Logger
}

// ExecError says why the command could not be started, and the code to exit with.
type ExecError struct {
	// Code is ExitNotFound or ExitNotExecutable.
	Code int
	// Name is the command as the caller wrote it.
	Name string
	// Reason is the system's text.
	Reason string
}

// Error is worded like a shell's message.
func (e *ExecError) Error() string { return fmt.Sprintf("%s: %s", e.Name, e.Reason) }
