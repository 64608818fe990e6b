package datadir

// Places says where the parts of an installation lie. All paths are absolute.
type Places struct {
	Data string
	KEK  string
	// IssuerKey is the issuer's key file, where the configuration gives it one of its own.
	IssuerKey string
	Audit     string // the audit log's directory
	Secrets   string
	// Databases are the data files of the services that keep theirs in SQLite, by service.
	Databases map[string]string
	// Server are the services whose database is a server's.
	Server []string
}
