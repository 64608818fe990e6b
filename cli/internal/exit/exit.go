// Package exit gives every error of the sallyport command its exit code and
// its one line. The table of codes is part of the command's contract: scripts
// rely on it.
package exit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Code is an exit code.
type Code int

// The codes. Their numbers never change.
const (
	OK           Code = 0
	General      Code = 1
	Usage        Code = 2
	NotFound     Code = 3
	Refused      Code = 4
	Unreachable  Code = 5
	Failed       Code = 6
	Timeout      Code = 7
	Verification Code = 8
	Unverified   Code = 9
	Data         Code = 10
	Address      Code = 11
	Clock        Code = 12
	Space        Code = 13
	Unsound      Code = 14
	Unseen       Code = 15
	Interrupted  Code = 130
)

// Row explains one code.
type Row struct {
	Code    Code
	Meaning string
}

// Table explains all codes, as "sallyport help exit-codes" prints it.
var Table = []Row{
	{OK, "done; for watch: every target is served"},
	{General, "something else went wrong; serve: a supervisor should start it again"},
	{Usage, "the command line, a file or a value in it is wrong: nothing was done"},
	{NotFound, "there is no such object, or no such context"},
	{Refused, "the server refused: not allowed, a conflict, or something else must change first"},
	{Unreachable, "the server cannot be reached, or asks to come back later"},
	{Failed, "watch: a target has failed"},
	{Timeout, "the given time was not enough"},
	{Verification, "audit verify, prove, checkpoint --older: the log or the proof is wrong; backup verify, restore: the backup is damaged"},
	{Unverified, "watch: all is installed, but some target could not be seen serving it"},
	{Data, "serve, trust, backup, restore: the data directory is locked, not ours, corrupt, too new, unreadable, or readable by others"},
	{Address, "serve: it cannot listen on the address"},
	{Clock, "serve, restore: the clock is wrong"},
	{Space, "serve, trust, backup, restore, audit export: the disk is full"},
	{Unsound, "doctor: something is wrong"},
	{Unseen, "doctor: nothing is known to be wrong, but something could not be checked"},
	{Interrupted, "interrupted by a signal"},
}

// Error is an error with a code of its own.
type Error struct {
	Code Code
	Err  error
}

// With gives err the code; nil stays nil.
func With(code Code, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err}
}

// Errorf is With of a new error.
func Errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the error itself.
func (e *Error) Unwrap() error { return e.Err }

// Of is the code an error ends in.
func Of(err error) Code {
	var own *Error
	var conf *config.Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &own):
		return own.Code
	case errors.As(err, &conf):
		return Usage
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	e := fault.Of(err)
	if e.Reason == fault.ReasonDeadlineExceeded {
		return Timeout
	}
	switch e.Kind {
	case fault.InvalidArgument:
		return Usage
	case fault.NotFound:
		return NotFound
	case fault.AlreadyExists, fault.Conflict, fault.Precondition, fault.Unauthenticated, fault.Denied, fault.Permanent:
		return Refused
	case fault.Exhausted, fault.Transient:
		return Unreachable
	}
	return General
}

// Report writes one line for err, or one for each error it joins.
func Report(w io.Writer, program string, err error) {
	for _, one := range parts(err) {
		fmt.Fprintf(w, "%s: %s\n", program, Line(one))
	}
}

// parts takes joined errors apart, also below a code.
func parts(err error) []error {
	if own, ok := err.(*Error); ok { //nolint:errorlint // only an outermost join is a list
		return parts(own.Err)
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, parts(e)...)
	}
	return all
}

// Line is the error in one line: what went wrong, the machine-readable reason
// where a service gave one, and when to try again.
func Line(err error) string {
	text := strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		text = strings.ReplaceAll(text, context.DeadlineExceeded.Error(), "the time given was not enough")
	case errors.Is(err, context.Canceled):
		text = strings.ReplaceAll(text, context.Canceled.Error(), "interrupted")
	}
	var e *fault.Error
	if !errors.As(err, &e) {
		return text
	}
	if e.Reason != "" && e.Reason != fault.ReasonInvalidField {
		text += " (" + e.Reason + ")"
	}
	if e.RetryAfter > 0 {
		text += fmt.Sprintf("; try again in %s", e.RetryAfter.Round(time.Second))
	}
	return text
}
