package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
)

func TestSurvey(t *testing.T) {
	each(t, func(f *fixture) {
		survey := func() Survey {
			t.Helper()
			v, err := f.Survey(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		if v := survey(); len(v.Open) != 0 || len(v.Authorities) != 1 || v.Authorities[0] != (Standing{Name: "public"}) {
			t.Fatalf("of nothing: %+v", v)
		}
		begun := f.clock
		f.begin(f.decision("r1"))
		f.clock = f.clock.Add(time.Hour)
		f.begin(f.decision("r2"))
		f.begin(f.issued("r3")) // over: not counted
		if v := survey(); len(v.Open) != 1 || v.Open[issuance.Accepted] != 2 || !v.Since[issuance.Accepted].Equal(begun) {
			t.Fatalf("two open: %+v", v)
		}
		if err := f.NoteProblem(t.Context(), f.a.UID, "it does not answer"); err != nil {
			t.Fatal(err)
		}
		first := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
		ca := func(end time.Time) []byte {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: end}
			der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
			if err != nil {
				t.Fatal(err)
			}
			return der
		}
		_, err := f.CreateAuthority(t.Context(), Authority{
			Spec: authority.Spec{Name: "own", Internal: &authority.Internal{}}, UID: "u2", Key: []byte("k"), Chain: [][]byte{ca(first), ca(first.AddDate(5, 0, 0))},
		})
		if err != nil {
			t.Fatal(err)
		}
		if v := survey(); len(v.Authorities) != 2 || v.Authorities[0].Name != "own" || !v.Authorities[0].Ends.Equal(first) || v.Authorities[0].Trouble || !v.Authorities[1].Trouble {
			t.Fatalf("authorities: %+v", v.Authorities)
		}
		// Damaged beyond reading is an error, not a number.
		if err := f.db.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE chain SET ders = $1`, []byte{0x30, 1})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if v, err := f.Survey(t.Context()); err == nil {
			t.Fatalf("of damaged certificates: %+v", v)
		}
	})
}
