"""What an application does with its database."""

import datetime
import decimal
import threading

from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.db import IntegrityError, connection, transaction
from django.db.models import Avg, Count, F, Q
from django.test import TestCase, TransactionTestCase
from django.utils import timezone

from library.models import Author, Book


def book(author, title="Untitled", **others):
    others.setdefault("published", timezone.now())
    others.setdefault("price", decimal.Decimal("9.50"))
    return Book(author=author, title=title, **others)


class Queries(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.author = Author.objects.create(name="Ada", born=datetime.date(1815, 12, 10))

    def test_objects_come_back_as_they_were_saved(self):
        saved = book(self.author, "Notes", about={"pages": [1, None, "x"]}, tags=["engine", "notes"])
        saved.save()
        found = Book.objects.get(tags__contains=["engine"])
        self.assertEqual((found.about, found.price, found.published), (saved.about, saved.price, saved.published))
        self.assertEqual(Book.objects.filter(about__pages__2="x").count(), 1)

    def test_many_objects(self):
        Book.objects.bulk_create([book(self.author, f"Volume {n}") for n in range(2500)], batch_size=500)
        Book.objects.filter(title__startswith="Volume 1").update(price=F("price") * 2)
        self.assertEqual(sum(1 for _ in Book.objects.iterator(chunk_size=100)), 2500)
        totals = Author.objects.annotate(n=Count("books"), mean=Avg("books__price")).get()
        self.assertEqual(totals.n, 2500)
        self.assertGreater(totals.mean, 9)
        self.assertTrue(Book.objects.filter(Q(title="Volume 7") | Q(title="none")).exists())

    def test_a_violated_constraint_spoils_only_its_savepoint(self):
        with self.assertRaises(IntegrityError), transaction.atomic():
            Author.objects.create(name="Ada")
        with self.assertRaises(IntegrityError), transaction.atomic():
            book(self.author, price=-1).save()
        self.assertEqual(Author.objects.count(), 1)

    def test_users_and_sessions(self):
        User.objects.create_user("ada", password="secret")
        self.assertTrue(self.client.login(username="ada", password="secret"))
        session = SessionStore()
        session["basket"] = [1, 2]
        session.save()
        self.assertEqual(SessionStore(session.session_key)["basket"], [1, 2])


class Transactions(TransactionTestCase):
    def test_locks_and_threads(self):
        author = Author.objects.create(name="Ada")
        Book.objects.bulk_create([book(author, price=0)])
        failures = []

        def pay():
            try:
                for _ in range(10):
                    with transaction.atomic():
                        locked = Book.objects.select_for_update().get()
                        locked.price += 1
                        locked.save()
            except Exception as failure:
                failures.append(failure)
            finally:
                connection.close()

        threads = [threading.Thread(target=pay) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.assertEqual(Book.objects.get().price, 80)

    def test_iterators_outside_a_transaction(self):
        author = Author.objects.create(name="Ada")
        Book.objects.bulk_create([book(author, f"Volume {n}") for n in range(700)])
        titles = [found.title for found in Book.objects.order_by("id").iterator(chunk_size=100)]
        self.assertEqual(titles, [f"Volume {n}" for n in range(700)])

    def test_settings_stay(self):
        for _ in range(10):
            with connection.cursor() as cursor:
                cursor.execute("show timezone")
                self.assertEqual(cursor.fetchone(), (connection.timezone_name,))
                name = connection.settings_dict["OPTIONS"].get("application_name", "")
                cursor.execute("show application_name")
                self.assertEqual(cursor.fetchone(), (name,))

    def test_what_fails_is_rolled_back(self):
        with self.assertRaises(KeyError), transaction.atomic():
            Author.objects.create(name="Ada")
            raise KeyError
        self.assertEqual(Author.objects.count(), 0)
        with transaction.atomic(durable=True):
            Author.objects.create(name="Ada")
            transaction.on_commit(lambda: Author.objects.create(name="Charles"))
        self.assertEqual(Author.objects.count(), 2)
