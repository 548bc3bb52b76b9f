package main

import (
	"net"
	"os"
)

// notifyReady tells a service manager that traffic is under control now (sd_notify(3)); it
// does nothing where there is none.
func notifyReady() { notify("READY=1") }

// notifyStopping tells a service manager that the program is on its way out.
func notifyStopping() { notify("STOPPING=1") }

func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' { // an abstract socket
		path = "\x00" + path[1:]
	}
	c, err := net.Dial("unixgram", path)
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}
