module github.com/sallyport-pki/sallyport/services/inventory

go 1.26
