package sandbox

import (
	"encoding/json"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// op names a message between Start's process ("parent") and the supervisor ("child"). The
// order is: setup > ready|failed > start > started|notStarted > (signal | dial > dialed)* >
// exited. The end of the stream means that the other side is dead.
type op string

const (
	opSetup      op = "setup"      // parent: MTU, ResolvConf, Link
	opReady      op = "ready"      // child: NetNS, IfIndex, MAC, Divert, Warnings; files: device, diag socket, closings, the Diverter's
	opFailed     op = "failed"     // child: Text, Errno
	opStart      op = "start"      // parent
	opStarted    op = "started"    // child: PID
	opNotStarted op = "notStarted" // child: Code, Text
	opSignal     op = "signal"     // parent: Signal
	opDial       op = "dial"       // parent: ID, Port
	opDialed     op = "dialed"     // child: ID, and a file or Text
	opExited     op = "exited"     // child: Code
)

// message is one datagram on the control socket; which fields matter depends on Op.
type message struct {
	Op         op
	MTU        int      `json:",omitempty"`
	ResolvConf []byte   `json:",omitempty"`
	Link       Link     `json:",omitempty"`
	Sysctls    []sysctl `json:",omitempty"` // of the host, to hold inside as well
	NetNS      uint64   `json:",omitempty"`
	IfIndex    int      `json:",omitempty"`
	MAC        []byte   `json:",omitempty"` // of the program's end; empty for a TUN device
	Warnings   []string `json:",omitempty"`
	Text       string   `json:",omitempty"`
	Errno      int      `json:",omitempty"`
	PID        int      `json:",omitempty"`
	Code       int      `json:",omitempty"`
	Signal     int      `json:",omitempty"`
	ID         uint64   `json:",omitempty"`
	Port       uint16   `json:",omitempty"`

	Divert divertMessage
}

// divertMessage says which of the descriptors of opReady are a Diverter's.
type divertMessage struct {
	Port                      uint16
	Listeners, Raw, Conntrack int    // their numbers, in this order behind the others
	Refused                   string // why there are none
}

// maxFiles is more descriptors than any message has.
const maxFiles = 16

// maxMessage holds the largest message: setup with a base64 resolv.conf.
const maxMessage = 2*maxResolvConf + 4096

// control is one end of the socket pair. It keeps message boundaries and carries descriptors.
type control struct {
	conn *net.UnixConn
}

// newControl makes a socket pair: our end and the file for the child.
func newControl() (*control, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("control socket: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	ours, err := openControl(pair[0])
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// openControl takes over the descriptor fd.
func openControl(fd int) (*control, error) {
	file := os.NewFile(uintptr(fd), "control")
	defer file.Close() // FileConn has a copy
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("control socket: descriptor %d is a %T", fd, conn)
	}
	return &control{conn: unixConn}, nil
}

func (c *control) send(m message, fds ...int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.conn.WriteMsgUnix(b, rights, nil)
	return err
}

// receive returns the next message and its descriptors, which are close-on-exec and belong to
// the caller.
func (c *control) receive(buf []byte) (message, []int, error) {
	var m message
	rights := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, nr, _, _, err := c.conn.ReadMsgUnix(buf, rights)
	if err != nil {
		return m, nil, err
	}
	fds, err := parseRights(rights[:nr])
	if err != nil {
		return m, nil, err
	}
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		closeAll(fds)
		return m, nil, fmt.Errorf("control socket: %w", err)
	}
	return m, fds, nil
}

func parseRights(b []byte) ([]int, error) {
	if len(b) == 0 {
		return nil, nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	var fds []int
	for i := range cmsgs {
		got, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("control socket: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
