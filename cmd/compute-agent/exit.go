package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// The exit codes; exitCodesHelp documents them. Append only.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5
	exitForbidden   = 6
	exitUnsupported = 7
	exitCancelled   = 8
	exitInterrupted = 130
)

const exitCodesHelp = `Exit codes are stable: scripts may rely on them.

    0  done
    1  it failed: the agent tried, or this is a defect
    2  the command line, the configuration or an argument is wrong (invalid_argument)
    3  no such host, instance, migration or file (not_found)
    4  the state of the thing is in the way (conflict, precondition_failed)
    5  try again later (unavailable, timeout, busy, expired)
    6  not allowed (unauthorized)
    7  the agent is older than what was asked (unsupported_method, unsupported_version)
    8  it was ended on request (cancelled), as a migration that was aborted
  130  interrupted by Ctrl-C; what was asked of the agent goes on

With -o json or -o yaml an error is one object on standard error, with the kind in it.
`

// usageError is a wrong command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// interrupted ends a wait by Ctrl-C and says what goes on without us.
type interrupted struct{ goesOn string }

func (e *interrupted) Error() string { return "interrupted: " + e.goesOn }

func exitCode(err error) int {
	var stopped *interrupted
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &stopped):
		return exitInterrupted
	case errors.As(err, &usage):
		return exitUsage
	}
	switch fault.KindOf(err) {
	case fault.InvalidArgument:
		return exitUsage
	case fault.NotFound:
		return exitNotFound
	case fault.Conflict, fault.PreconditionFailed:
		return exitConflict
	case fault.Unavailable, fault.Timeout, fault.Busy, fault.Expired:
		return exitUnavailable
	case fault.Unauthorized:
		return exitForbidden
	case fault.UnsupportedMethod, fault.UnsupportedVersion:
		return exitUnsupported
	case fault.Cancelled:
		return exitCancelled
	case fault.Internal:
	}
	return exitFailed
}

// report prints what went wrong and gives the exit code.
func (a *app) report(ctx context.Context, cmd *cobra.Command, err error) int {
	var stopped *interrupted
	switch {
	case errors.As(err, &stopped):
		_, _ = fmt.Fprintln(a.err, "\nInterrupted. "+stopped.goesOn)
		return exitInterrupted
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		_, _ = fmt.Fprintln(a.err, "\nInterrupted.")
		return exitInterrupted
	}
	code := exitCode(err)
	if a.output != outputTable && fault.KindOf(err) != "" {
		if a.encode(a.err, fault.Wire(err)) == nil {
			return code
		}
	}
	_, _ = fmt.Fprintln(a.err, "Error: "+a.called(err.Error()))
	for _, reason := range reasons(err) {
		_, _ = fmt.Fprintln(a.err, "  - "+a.called(reason))
	}
	hint := fault.HintOf(err)
	var usage *usageError
	if errors.As(err, &usage) && hint == "" {
		hint = "`" + cmd.CommandPath() + " --help` shows how it is used"
	}
	if hint != "" {
		_, _ = fmt.Fprintln(a.err, "Hint:  "+a.called(hint))
	}
	return code
}

// reasons lists what a pre-check had to say, unless the message has it already.
func reasons(err error) []string {
	var list []string
	switch all := fault.DetailsOf(err)["reasons"].(type) {
	case []string:
		list = all
	case []any:
		for _, r := range all {
			list = append(list, fmt.Sprint(r))
		}
	}
	for _, r := range list {
		if strings.Contains(err.Error(), r) {
			return nil
		}
	}
	return list
}
