// Package attribution names the process that owns a flow, with a confidence and a cause.
//
// The Gate and the nameserver ask it once per flow, never on the packet path. It is the only
// package that imports gopsutil. It does not decide anything and does not know profiles.
package attribution

import "time"

// Confidence says how sure an owner is. The zero value claims nothing.
type Confidence uint8

// The confidences, from none to certain. Only Exact and Inherited name one process that may
// be judged by its own profile; Ambiguous and None are judged as Unidentified.
const (
	None      Confidence = iota // no process was found
	Ambiguous                   // several unrelated processes hold the socket, or it is shared (SO_REUSEPORT)
	Inherited                   // a socket shared by a process and its descendants
	Exact                       // one process holds the socket
)

// String returns the JSON value of product.md's owner_confidence.
func (c Confidence) String() string {
	switch c {
	case Exact:
		return "exact"
	case Inherited:
		return "inherited"
	case Ambiguous:
		return "ambiguous"
	default:
		return "none"
	}
}

// Process holds the facts of one process, taken once. It is immutable and shared: nobody
// writes to a *Process after it was returned. PID and Started together are its identity;
// a PID alone is not, because the kernel uses it again.
type Process struct {
	PID       int
	Started   time.Time // from /proc/PID/stat, in boot clock ticks: 10 ms resolution on Linux
	Path      string    // the binary, resolved; "/path (deleted)" is kept as the kernel says it
	Name      string
	Args      []string
	UID       uint32
	User      string
	Parent    int // PID of the parent at the time of the look-up
	Unit      string
	Container string
	Kind      Kind

	// What follows names a program better than its binary where many share one. Linux only; ""
	// where it does not apply or may not be read.
	CGroup   string // path of its control group: "/system.slice/nginx.service"
	Script   string // absolute path of what an interpreter runs (python, node, shells, perl, ruby); marked as Path is
	Flatpak  string // application: "org.example.App"
	Snap     string // name of the snap
	AppImage string // absolute path of the AppImage file
}

// Kind separates real processes from the identities that stand in where there is none.
type Kind uint8

// The kinds of Process. The zero value is the unidentified process, which is an identity of
// its own: it is never judged by another program's rules.
const (
	KindUnidentified Kind = iota
	KindProgram
	KindSelf        // this program
	KindUnsolicited // inbound traffic that no process waits for
	KindSystem      // the kernel: sockets and packets without a process
)

// Owner is the answer to "whose flow is this?". Process is never nil.
type Owner struct {
	Process    *Process
	Confidence Confidence
	Cause      string // one short phrase for owner_cause: "socket held by one process", "socket already closed", …
}

// Unidentified returns the owner of a flow whose process is not known, with the cause why.
func Unidentified(cause string) Owner {
	return Owner{Process: &Process{Kind: KindUnidentified, Name: "unidentified"}, Cause: cause}
}
