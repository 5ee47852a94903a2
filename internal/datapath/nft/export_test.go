package nft

import "log/slog"

// NewPlain returns a driver that behaves as on a kernel without owned tables.
func NewPlain(log *slog.Logger, forget Forget) (*Driver, error) {
	d, err := New(log, forget)
	if err == nil {
		d.plain = true
	}
	return d, err
}
