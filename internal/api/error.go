package api

import (
	"errors"
	"fmt"
)

// Code says what kind of failure an error is. 1 to 99 are those of the CNI specification (1.1.0,
// section 5), because they travel to the container runtime unchanged.
type Code int

// The codes. A runtime repeats any failed ADD; TryAgain tells it that nothing has to be changed for
// that, the codes from 100 on that somebody has to do something.
const (
	CodeIncompatible     Code = 1  // CNI version not spoken
	CodeUnsupportedField Code = 2  // a field of the network configuration that cannot be honoured
	CodeUnknownContainer Code = 3  // nothing is known of the container
	CodeInvalidEnv       Code = 4  // a CNI_ variable is missing or malformed; the message names it
	CodeIO               Code = 5  // the configuration could not be read, the journal not written
	CodeDecode           Code = 6  // JSON that is none, or has a wrong type
	CodeInvalidConfig    Code = 7  // a value that is refused, such as an address outside all pools
	CodeTryAgain         Code = 11 // the agent is away, starting, or did not finish in time
	CodeNotAvailable     Code = 50 // STATUS: ADD cannot be served
	CodeLimited          Code = 51 // STATUS: ADD cannot be served, and running pods may be affected

	CodeUnknownMethod Code = 100 // the agent has no such method: other version
	CodeExhausted     Code = 101 // no free address in the pools of a family
	CodeTaken         Code = 102 // a requested address, MAC or host port belongs to another pod
	CodeCheckFailed   Code = 103 // CHECK found something missing or wrong
	CodeDatapath      Code = 104 // the kernel refused what the pod needs
	CodeInternal      Code = 999 // none of these; the message is all there is
)

// Error is a failure as it travels to the caller.
type Error struct {
	Code    Code   `json:"code"`
	Msg     string `json:"msg"`               // one line
	Details string `json:"details,omitempty"` // what to do about it, or the causes; may have several lines
}

// Error implements error.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Errorf returns an Error with the code; its message is formatted as by fmt.Sprintf.
func Errorf(code Code, format string, a ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, a...)}
}

// AsError returns err as it travels: itself if it is or wraps an *Error, keeping the words around it, else
// with CodeInternal. nil stays nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	switch {
	case !errors.As(err, &e):
		return &Error{Code: CodeInternal, Msg: err.Error()}
	case error(e) == err: //nolint:errorlint // whether it is bare, which errors.Is cannot say
		return e
	}
	return &Error{Code: e.Code, Msg: err.Error()}
}
