package main

import (
	"errors"
	"net/http"
	"os"

	"gatun/api"
	"gatun/config"
	"gatun/tun/route"
)

// The exit codes of product.md. They are part of the interface: scripts test them.
const (
	exitFailed         = 1
	exitUsage          = 2
	exitConfig         = 3
	exitPermission     = 4
	exitNotRunning     = 5
	exitAlreadyRunning = 6
	exitBlocked        = 10  // `why`: block; `run --fail-on-block`: something was blocked
	exitAsk            = 11  // `why`: ask
	exitRunFailed      = 125 // `run`: gatun itself failed before the command ran
)

// exitStatus is an error that carries an exit code. With no cause it is silent.
type exitStatus struct {
	code  int
	cause error
}

func (e exitStatus) silent() bool  { return e.cause == nil }
func (e exitStatus) Unwrap() error { return e.cause }
func (e exitStatus) Error() string {
	if e.cause == nil {
		return ""
	}
	return e.cause.Error()
}

func exitCode(err error) int {
	var (
		status   exitStatus
		problems config.Problems
		answer   *api.Error
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return status.code
	case errors.As(err, &problems):
		return exitConfig
	case errors.As(err, &answer) && len(answer.Problems) > 0 && answer.Code != http.StatusConflict:
		return exitConfig
	case errors.Is(err, api.ErrNotRunning):
		return exitNotRunning
	case errors.Is(err, route.ErrAlreadyRunning), errors.Is(err, api.ErrServed):
		return exitAlreadyRunning
	case errors.Is(err, os.ErrPermission):
		return exitPermission
	default:
		return exitFailed
	}
}
