package secrets

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/protobuf/encoding/protowire"
	_ "modernc.org/sqlite" // driver "sqlite"
)

// databases gives every value in every table of the control plane, which must be stopped.
func (s *site) databases(ctx context.Context, each func(part) error) error {
	if s.daemons != nil {
		return database(ctx, "pgx", s.dsn, "postgres", `SELECT schemaname || '"."' || tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema)'`, 12, each)
	}
	files, err := filepath.Glob(filepath.Join(s.plane.Data, "*.db"))
	if err != nil {
		return err
	}
	if len(files) != 4 {
		return fmt.Errorf("the databases are %v", files)
	}
	for _, file := range files {
		err := database(ctx, "sqlite", "file:"+file+"?mode=ro", filepath.Base(file), `SELECT name FROM sqlite_master WHERE type = 'table'`, 3, each)
		if err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
	}
	return nil
}

// database gives every value in every table that the query lists, which must be at least so many.
func database(ctx context.Context, driver, dsn, name, list string, least int, each func(part) error) error {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	tables, err := strs(ctx, db, list)
	if err != nil {
		return err
	}
	if len(tables) < least {
		return fmt.Errorf("the tables are %v", tables)
	}
	for _, table := range tables {
		if err := rows(ctx, db, name+" "+table, `SELECT * FROM "`+table+`"`, each); err != nil {
			return err
		}
	}
	return nil
}

func strs(ctx context.Context, db *sql.DB, query string) ([]string, error) {
	var all []string
	return all, rows(ctx, db, "", query, func(p part) error {
		all = append(all, string(p.data))
		return nil
	})
}

func rows(ctx context.Context, db *sql.DB, place, query string, each func(part) error) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	values := make([]sql.RawBytes, len(columns))
	into := make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		for i, value := range values {
			if err := each(part{place + "." + columns[i], value}); err != nil {
				return err
			}
		}
	}
	return rows.Err()
}

// messages gives every message in the event store of the control plane, which must be stopped: a broker opens a copy.
func (s *site) messages(ctx context.Context, each func(part) error) error {
	dir := filepath.Join(s.Dir, "nats-copy")
	store := filepath.Join(s.plane.Data, "nats")
	if s.daemons != nil {
		store = filepath.Join(s.daemons.Folder("nats"), "store")
	}
	if err := os.CopyFS(dir, os.DirFS(store)); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	broker, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: dir, NoSigs: true})
	if err != nil {
		return err
	}
	broker.Start()
	defer func() { broker.Shutdown(); broker.WaitForShutdown() }()
	if !broker.ReadyForConnections(time.Minute) {
		return errors.New("the copy of the event store cannot be opened")
	}
	conn, err := nats.Connect("", nats.InProcessServer(broker))
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	read := 0
	streams := js.StreamNames(ctx)
	for name := range streams.Name() {
		stream, err := js.Stream(ctx, name)
		if err != nil {
			return err
		}
		state := stream.CachedInfo().State
		for at := state.FirstSeq; at <= state.LastSeq; at++ {
			m, err := stream.GetMsg(ctx, at)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			if err != nil {
				return fmt.Errorf("reading message %d of %s: %w", at, name, err)
			}
			read++
			head := fmt.Sprint(m.Subject, m.Header)
			if err := errors.Join(each(part{m.Subject, m.Data}), each(part{m.Subject, []byte(head)})); err != nil {
				return err
			}
		}
	}
	if read == 0 {
		return errors.New("there is no message")
	}
	return streams.Err()
}

// open learns the secrets that lie sealed in the control plane's data, by the key that seals them. Each must be a key of what
// the control plane says is its own; so the seal is no reason to look for the wrong bytes.
func (s *site) open(t *testing.T) {
	t.Helper()
	kekFile, driver, dsn, table := filepath.Join(s.plane.Data, "kek"), "sqlite", "file:"+filepath.Join(s.plane.Data, "issuer.db")+"?mode=ro", "authority"
	if s.daemons != nil {
		kekFile, driver, dsn, table = filepath.Join(s.daemons.Folder("issuer"), "kek"), "pgx", s.dsn, "issuer.authority"
	}
	text := ok(os.ReadFile(kekFile))(t)
	var set struct {
		Key []struct{ KeyData struct{ Value []byte } }
	}
	must(t, json.Unmarshal(text, &set))
	for _, key := range set.Key {
		s.add(secret{"key-encryption key", "control", string(aesKey(t, key.KeyData.Value))})
	}
	kek := ok(aead.New(ok(insecurecleartextkeyset.Read(keyset.NewJSONReader(strings.NewReader(string(text)))))(t)))(t)
	box := aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), kek)

	rootKey := ok(os.ReadFile(filepath.Join(s.plane.Data, "trust/root-key.pem")))(t)
	if s.daemons == nil {
		root, _ := pem.Decode(rootKey)
		rootKey = unseal(t, box, "trust-root", "root-key", root.Bytes)
	}
	must(t, s.addKeys("trust root", "control", rootKey))

	db := ok(sql.Open(driver, dsn))(t)
	defer db.Close()
	all := ok(db.QueryContext(t.Context(), `SELECT name, uid, kind, key_sealed, root_sealed FROM `+table))(t)
	defer all.Close()
	for all.Next() {
		var name, uid, kind string
		var key, root []byte
		must(t, all.Scan(&name, &uid, &kind, &key, &root))
		if kind == "internal" {
			must(t, s.addKeys("CA key", name, unseal(t, box, "ca-issuing-key", uid, key)))
			must(t, s.addKeys("CA key", name+" root", unseal(t, box, "ca-root-key", uid, root)))
			continue
		}
		must(t, s.addKeys("account key", name, unseal(t, box, "acme-account-key", uid, key)))
	}
	must(t, all.Err())

	// "PRIVATE+KEY+<name>+<hash>+<base64 of the algorithm and the seed>" (golang.org/x/mod/sumdb/note)
	parts := strings.Split(strings.TrimSpace(string(ok(os.ReadFile(filepath.Join(s.plane.Data, "audit/checkpoint.key")))(t))), "+")
	s.add(secret{"checkpoint key", "control", string(ok(base64.StdEncoding.DecodeString(strings.Join(parts[4:], "+")))(t)[1:])})
}

func unseal(t *testing.T, box tink.AEAD, purpose, row string, sealed []byte) []byte {
	t.Helper()
	return ok(box.Decrypt(sealed, fmt.Appendf(nil, "sallyport/%d/%s/%s", len(purpose), purpose, row)))(t)
}

// aesKey is field 3 of google.crypto.tink.AesGcmKey.
func aesKey(t *testing.T, message []byte) []byte {
	t.Helper()
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			break
		}
		message = message[n:]
		if number == 3 && kind == protowire.BytesType {
			key, n := protowire.ConsumeBytes(message)
			if n < 0 {
				break
			}
			return key
		}
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			break
		}
		message = message[n:]
	}
	t.Fatal("the key-encryption key is no AES key")
	return nil
}
