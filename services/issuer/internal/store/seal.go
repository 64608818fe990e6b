package store

import (
	"context"

	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Sealed reports whether anything was ever sealed here.
func (s *Store) Sealed(ctx context.Context) (bool, error) {
	var n int
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT count(*) FROM seal`).Scan(&n)
	})
	return n > 0, err
}

// Seal gives the sealed text that was stored first: mine, if nobody came before.
func (s *Store) Seal(ctx context.Context, mine []byte) ([]byte, error) {
	var sealed []byte
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO seal (id, sealed) VALUES (1, $1) ON CONFLICT (id) DO NOTHING`, mine); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT sealed FROM seal WHERE id = 1`).Scan(&sealed)
	})
	return sealed, err
}
