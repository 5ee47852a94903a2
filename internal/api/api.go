// Package api is the language of the agent's socket: frames, errors, and the
// messages of the methods that other binaries call.
//
// A frame is a 4-byte big-endian length and a JSON document of that many bytes. A
// connection carries one request, {"method","params"}, and then the replies to it: at
// once {"accepted":true}, by which a caller tells a busy agent from a hanging one, then any number of
// {"result"}, ended by {"end":true} or {"error":{code,msg,details}}.
// JSON and no generated code, because weft-cni speaks it and must stay small.
//
// It is not an RPC system for others: the socket is root's, on one host, and both
// ends are of one version. It has no intent and no plan (model, plan), and what
// a method does is its handler's.
package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxFrame is the largest document in a frame, in bytes. A larger one is refused before it is read;
// whoever has more to say sends several results.
const MaxFrame = 16 << 20

// SocketName is the name of the agent's socket in its run directory.
const SocketName = "weft.sock"

// ErrFrame is wrapped by every error that means that the peer does not speak this protocol.
var ErrFrame = errors.New("malformed frame")

// request is the first frame of a connection.
type request struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params,omitempty"`
	// TimeoutMillis is how long the caller waits; 0: as long as it is connected.
	TimeoutMillis int64 `json:"timeoutMillis,omitempty"`
}

// reply is every other frame. Exactly one field is set.
type reply struct {
	Accepted bool            `json:"accepted,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
	End      bool            `json:"end,omitempty"`
}

// writeFrame sends v as one frame with one write.
func writeFrame(w io.Writer, v any) error {
	doc, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if len(doc) > MaxFrame {
		return fmt.Errorf("frame of %d bytes is over the limit of %d", len(doc), MaxFrame)
	}
	buf := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(doc)), uint32(len(doc)))
	_, err = w.Write(append(buf, doc...))
	return err
}

// readFrame receives one frame into v. It returns io.EOF if the peer closed between frames. Memory
// grows with what arrives, not with what the length promises.
func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if n, err := io.ReadFull(r, head[:]); err != nil {
		if n > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: %d of 4 length bytes", ErrFrame, n)
		}
		return err
	}
	size := int64(binary.BigEndian.Uint32(head[:]))
	if size == 0 || size > MaxFrame {
		return fmt.Errorf("%w: length %d is not in 1..%d", ErrFrame, size, MaxFrame)
	}
	var doc bytes.Buffer
	if n, err := io.CopyN(&doc, r, size); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %d of %d bytes", ErrFrame, n, size)
		}
		return err
	}
	if err := json.Unmarshal(doc.Bytes(), v); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}
