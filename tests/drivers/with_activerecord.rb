# ActiveRecord as Rails has it: a pool of connections for many threads, prepared statements with a small limit and without any, migrations
# under their advisory lock, savepoints, locks, batches, a schema that changes under prepared statements.

require "active_record"
require_relative "checks"

SESSIONS = ENV["PGWEIR_MODE"] != "transaction"
THREADS = 8

class Author < ActiveRecord::Base
  has_many :books
end

class Book < ActiveRecord::Base
  belongs_to :author
  attribute :tags, :json
end

class CreateLibrary < ActiveRecord::Migration[6.1]
  def change
    create_table :authors do |t|
      t.string :name, null: false, index: { unique: true }
      t.timestamps
    end
    create_table :books do |t|
      t.references :author, null: false, foreign_key: true
      t.string :title
      t.json :tags
      t.decimal :price, precision: 10, scale: 2
      t.integer :lock_version, default: 0
      t.timestamps
    end
  end
end

class AddPages < ActiveRecord::Migration[6.1]
  disable_ddl_transaction!

  def change
    add_column :books, :pages, :integer, default: 1
    add_index :books, :title, algorithm: :concurrently
  end
end

def at_once(count)
  threads = Array.new(count) do |number|
    Thread.new do
      Thread.current.report_on_exception = false
      ActiveRecord::Base.connection_pool.with_connection { yield number }
    end
  end
  threads.each(&:join)
end

def connect(**options)
  ActiveRecord::Base.establish_connection(
    adapter: "postgresql", pool: THREADS, checkout_timeout: 30, min_messages: "warning", **options
  )
end

# What `rails db:migrate` does: an advisory lock of the session around all of it. Two at once: one is refused, or comes later.
def migrates
  ActiveRecord::Migration.verbose = false
  ActiveRecord::Base.connection.execute("drop table if exists books, authors, schema_migrations, ar_internal_metadata")
  ActiveRecord::SchemaMigration.create_table
  migration = ->(version, kind) { kind.new(kind.name, version) }
  migrations = [migration.call(1, CreateLibrary), migration.call(2, AddPages)]
  run = ->(direction, target) { ActiveRecord::Migrator.new(direction, migrations, ActiveRecord::SchemaMigration, target).migrate }
  run.call(:up, nil)
  same %w[1 2], ActiveRecord::SchemaMigration.all_versions
  run.call(:down, 0)
  same [], ActiveRecord::SchemaMigration.all_versions
  run.call(:up, nil)
  [Author, Book].each(&:reset_column_information)
  held = ActiveRecord::Base.connection.select_value(
    "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())"
  )
  same 0, held
end

def reads_and_writes
  at_once(THREADS) do |number|
    author = Author.create!(name: "author #{number}")
    20.times do |n|
      book = author.books.create!(title: "book #{n}", price: "9.99", tags: { "n" => n })
      same({ "n" => n }, Book.find(book.id).tags)
      book.update!(price: book.price + 1)
    end
    same 20, author.books.where("price > ?", 10).count
    same (0...20).to_a, Book.where(author: author).order(:id).pluck(:tags).map { |tags| tags["n"] }
    seen = 0
    author.books.find_each(batch_size: 7) { seen += 1 }
    same 20, seen
    Book.insert_all([{ author_id: author.id, title: "bulk", created_at: Time.now, updated_at: Time.now }] * 3)
    same 3, Book.where(author: author, title: "bulk").delete_all
  end
  same THREADS * 20, Book.count
end

def transactions
  at_once(THREADS) do |number|
    author = Author.find_by!(name: "author #{number}")
    Author.transaction do
      author.lock!
      fails(ActiveRecord::RecordNotUnique) do
        Author.transaction(requires_new: true) { Author.create!(name: author.name) }
      end
      author.books.first.update!(title: "in a transaction")
      raise ActiveRecord::Rollback
    end
    same 0, author.books.where(title: "in a transaction").count
    one, other = Array.new(2) { author.books.order(:id).first }
    one.update!(title: "first")
    fails(ActiveRecord::StaleObjectError) { other.update!(title: "second") }
    Author.transaction(isolation: :serializable) do
      same "serializable", Author.connection.select_value("show transaction_isolation")
    end
    same "read committed", Author.connection.select_value("show transaction_isolation")
    fails(ActiveRecord::StatementInvalid) { Author.connection.execute("select 1/0") }
  end
end

# More statements than the limit: ActiveRecord deallocates the oldest.
def more_statements_than_it_keeps
  at_once(4) do
    30.times { |n| same n, Author.connection.select_value("select #{n} + $1::int", "many", [[nil, 0]]).to_i }
    30.times { |n| same [], Author.where(name: "nobody").limit(n + 1).offset(n).to_a }
  end
end

# A deployment that adds columns while others go on.
def a_schema_that_changes
  author = Author.first
  at_once(4) { same author, Author.find(author.id) }
  Author.connection.add_column(:authors, :born, :date)
  at_once(4) { same author, Author.find(author.id) }
  Author.reset_column_information
  author.reload.update!(born: "1900-01-01")
  at_once(4) { same Date.new(1900), Author.find(author.id).born }
  Author.connection.remove_column(:authors, :born)
  Author.reset_column_information
  at_once(4) { same author.id, Author.find(author.id).id }
end

def what_a_session_is_like
  connection = ActiveRecord::Base.connection
  same "UTC", connection.select_value("show timezone")
  same "warning", connection.select_value("show client_min_messages")
  same "on", connection.select_value("show standard_conforming_strings")
  at_once(THREADS) do
    own = ActiveRecord::Base.connection
    3.times { same %w[UTC warning iso_8601], own.select_rows("select current_setting('timezone'), current_setting('client_min_messages'), current_setting('intervalstyle')").first }
    own.reset!
    same "UTC", own.select_value("show timezone")
  end
  same true, connection.get_advisory_lock(77)
  same true, connection.release_advisory_lock(77)
  same true, connection.active?
  connection.reconnect!
  same 1, connection.select_value("select 1")
end

[{ statement_limit: 10 }, { prepared_statements: false }].each do |options|
  connect(**options)
  migrates
  reads_and_writes
  transactions
  more_statements_than_it_keeps
  a_schema_that_changes
  what_a_session_is_like
  ActiveRecord::Base.connection_pool.disconnect!
end
